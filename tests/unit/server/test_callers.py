"""Who calls, and how much each may."""

from __future__ import annotations

from pathlib import Path

import pytest

from higgs_server.server.callers import Callers, RateLimited, Unauthorized
from higgs_server.settings import BadSettings, Settings


def with_keys(**settings: object) -> Callers:
    return Callers(Settings(**settings))  # type: ignore[arg-type]


def name_of(callers: Callers, key: str) -> str | None:
    try:
        return callers.name({"x-api-key": key}, "10.0.0.1")
    except Unauthorized:
        return None


def test_without_keys_a_caller_is_an_address() -> None:
    assert with_keys().name({}, "10.0.0.1") == "10.0.0.1"


def test_each_key_has_a_name(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nalice: a-key\n\nbob:b:key \nbare-key\nalice:another\n", "utf-8")
    callers = with_keys(api_key="first, second", api_key_file=file)
    names = {key: name_of(callers, key) for key in ("first", "second", "a-key", "b:key", "bare-key", "another")}
    assert names == {
        "first": "key-1",
        "second": "key-2",
        "a-key": "alice",
        "b:key": "bob",
        "bare-key": "line-5",
        "another": "alice",
    }
    foreign = with_keys(api_key="schlüssel,密钥")
    # Headers come decoded as Latin-1. Browsers send it where they can, curl always sends UTF-8.
    for sent, name in (("schlüssel", "key-1"), ("schlüssel".encode().decode("latin-1"), "key-1")):
        assert name_of(foreign, sent) == name
    assert name_of(foreign, "密钥".encode().decode("latin-1")) == "key-2"
    for wrong in ("", "firs", "first, second", "alice", "alice: a-key", "# ours"):
        assert name_of(callers, wrong) is None
    assert callers.name({"authorization": "bearer  a-key"}, "-") == "alice"
    with pytest.raises(Unauthorized):
        callers.name({"authorization": "Basic a-key", "x-api-key": ""}, "-")


def test_a_file_that_changes_counts_at_once_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("alice:old")
    callers = with_keys(api_key_file=file)
    for text in (b"alice:new", b"broken:", b"", b"alice:\xff"):
        file.write_bytes(text)
        stamp = file.stat().st_mtime_ns + 1_000_000_000
        import os

        os.utime(file, ns=(stamp, stamp))
        assert (name_of(callers, "old"), name_of(callers, "new")) == (None, "alice")
    file.unlink()
    assert name_of(callers, "new") == "alice"


def test_a_broken_file_is_told_once_until_it_is_good_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, away = tmp_path / "keys", tmp_path / "away"
    file.write_text("alice:key")
    callers = with_keys(api_key_file=file)
    for _ in range(2):
        file.rename(away)
        for _ in range(3):
            assert name_of(callers, "key") == "alice"
        away.rename(file)
        assert name_of(callers, "key") == "alice"
    assert [record.exc_info for record in caplog.records if record.levelname == "ERROR"] == [None, None]


@pytest.mark.parametrize("given", [",", " , ", " "])
def test_a_flag_without_a_key_is_not_taken_for_none(given: str) -> None:
    with pytest.raises(BadSettings, match="no key"):
        with_keys(api_key=given)


@pytest.mark.parametrize("text", [None, b"", b"# nothing\n", b"alice:\n", b":key\n", b"\xff"])
def test_a_file_that_is_no_use_is_told_at_the_start(tmp_path: Path, text: bytes | None) -> None:
    file = tmp_path / "keys"
    if text is not None:
        file.write_bytes(text)
    with pytest.raises(BadSettings, match="keys"):
        with_keys(api_key_file=file)


def test_a_minute_s_worth_at_once_then_one_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    callers = with_keys(rate_limit=3)
    for _ in range(3):
        callers.count("alice")
    with pytest.raises(RateLimited) as refused:
        callers.count("alice")
    assert refused.value.retry_after == 20
    callers.count("bob")
    now += 15
    with pytest.raises(RateLimited) as refused:
        callers.count("alice")
    assert refused.value.retry_after == 5
    now += 5
    callers.count("alice")
    with pytest.raises(RateLimited):
        callers.count("alice")
    now += 1000
    for _ in range(3):
        callers.count("alice")


def test_callers_who_have_been_quiet_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    callers = with_keys(rate_limit=60)
    for number in range(25_000):
        now += 0.01
        callers.count(str(number))
    assert len(callers._next) <= 10_001


def test_so_many_at_the_same_time() -> None:
    callers = with_keys(max_concurrent=2)
    with callers.at_once("alice"), callers.at_once("bob"):
        with callers.at_once("alice"), pytest.raises(RateLimited) as refused, callers.at_once("alice"):
            pass
        assert refused.value.retry_after == 1
        with callers.at_once("alice"):
            pass
    assert not callers._active
