"""Whatever is uploaded ends in a clear answer, and the server goes on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from answers import generated_samples, wav_samples
from higgs_server.audio import wav
from hostile_clips import CLIPS, NAMES, encoded, speech
from server_process import ServerProcess

MOST_MEMORY = 400 * 2**20
VOICES = "/v1/audio/voices"


@pytest.fixture(scope="module", autouse=True)
def bounded_memory(embedded_server: ServerProcess) -> Any:
    """All uploads together take no more than a few of them would."""
    Path(f"/proc/{embedded_server.process.pid}/clear_refs").write_text("5")  # forget the peak of other tests
    before = peak_memory(embedded_server)
    yield
    assert peak_memory(embedded_server) <= before + MOST_MEMORY


def peak_memory(server: ServerProcess) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def upload(client: httpx.Client, data: bytes, name: str = "hostile", query: str = "") -> httpx.Response:
    return client.post(f"{VOICES}{query}", data={"name": name}, files={"audio_sample": ("clip.wav", data)})


def names(client: httpx.Client) -> list[str]:
    return [voice["name"] for voice in client.get(VOICES).raise_for_status().json()["voices"]]


def remove(client: httpx.Client, name: str) -> None:
    assert client.delete(f"{VOICES}/{quote(name, safe='')}").raise_for_status().json()["deleted"] is True


@pytest.mark.parametrize("kind", CLIPS)
def test_a_hostile_clip_gets_a_clear_answer(client: httpx.Client, kind: str) -> None:
    make, status, code = CLIPS[kind]
    data = make()
    before = names(client)
    answer = upload(client, data)
    assert answer.status_code == status, answer.text
    if status == 201:
        assert answer.json()["warnings"] == []
        assert answer.json()["duration"] > 2
        remove(client, "hostile")
    else:
        error = answer.json()["error"]
        assert answer.headers["x-should-retry"] == "false"
        assert len(error["message"]) > 20
        assert "Traceback" not in error["message"]
        if status == 422:
            assert error["code"] == "unfit_recording"
            found = [problem["code"] for problem in error["problems"]]
            assert found == [code] or (code == "*" and found)
        else:
            assert error["code"] == code
            assert error["param"] in ("audio_sample", None)
    assert names(client) == before
    speaks = client.post("/generate", json={"text": "Hi.", "ref_audio": "belinda"}).raise_for_status()
    assert len(generated_samples(speaks.json()))


@pytest.mark.parametrize("kind", [kind for kind, (_, status, _) in CLIPS.items() if status == 422])
def test_what_is_kept_by_force_can_be_played(client: httpx.Client, kind: str) -> None:
    answer = upload(client, CLIPS[kind][0](), query="?force=true&replace=true")
    assert answer.status_code == 201, answer.text
    assert answer.json()["warnings"]
    sample = client.get(f"{VOICES}/hostile/sample").raise_for_status()
    assert len(wav_samples(sample.content)) == pytest.approx(answer.json()["duration"] * 24_000, abs=24)
    remove(client, "hostile")


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_name_gets_a_clear_answer(client: httpx.Client, server: ServerProcess, name: str) -> None:
    before = names(client)
    answer = upload(client, wav.encode(speech()), name)
    assert answer.status_code == NAMES[name], answer.text
    if answer.status_code == 201:
        kept = answer.json()["name"]
        assert set(names(client)) == {*before, kept}
        assert client.get(f"{VOICES}/{quote(kept, safe='')}/sample").status_code == 200
        remove(client, kept)
    else:
        assert answer.json()["error"]["param"] == "name"
    assert names(client) == before
    assert not list(Path(f"/proc/{server.process.pid}/cwd").resolve().rglob("pwned"))


@pytest.mark.parametrize(
    "name", ["../x.wav", "/tmp/x.wav", "..\\x.wav", "a\0.wav", ".wav", "x" * 300 + ".wav", "a,b.wav"]
)
def test_a_hostile_file_name_gets_a_clear_answer(client: httpx.Client, name: str) -> None:
    before, scenes = names(client), client.get("/scenes").json()
    answer = client.post("/upload-audio", files={"audio_file": (name, wav.encode(speech()))})
    assert answer.status_code == 422, answer.text
    assert answer.json()["success"] is False
    answer = client.post("/upload-scene", files={"scene_file": (name.replace(".wav", ".txt"), b"A place.")})
    assert answer.status_code == 422, answer.text
    assert (names(client), client.get("/scenes").json()) == (before, scenes)


def test_what_is_no_form_or_lacks_something(client: httpx.Client) -> None:
    clip = {"audio_sample": ("a.wav", encoded("mp3"))}
    cases: list[tuple[dict[str, Any], int, str | None]] = [
        ({"json": {"name": "x"}}, 415, None),
        ({"content": b"--b", "headers": {"content-type": "multipart/form-data"}}, 400, None),
        ({"data": {"name": "x"}, "files": {"other": b"x"}}, 400, "audio_sample"),
        ({"files": clip}, 400, "name"),
        ({"data": {"name": "x", "audio_sample": "text"}, "files": {"y": b""}}, 400, "audio_sample"),
        ({"files": {**clip, "name": ("name.txt", b"x")}}, 400, None),
        ({"data": {"name": "x", "ref_text": "word " * 20_000}, "files": clip}, 413, "ref_text"),
        ({"data": {"name": "x"}, "files": clip, "params": {"force": "perhaps"}}, 400, "force"),
    ]
    for sent, status, param in cases:
        answer = client.post(VOICES, **sent)
        assert answer.status_code == status, (sent.keys(), answer.text)
        assert answer.json()["error"]["param"] == param


def test_many_uploads_at_once_all_end(client: httpx.Client) -> None:
    sound = wav.encode(speech())
    data = sound[:12] + b"LIST" + (16 * 2**20).to_bytes(4, "little") + bytes(16 * 2**20) + sound[12:]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: upload(client, data, f"many {number}"), range(8)))
    assert [answer.status_code for answer in answers] == [201] * 8
    for number in range(8):
        remove(client, f"many {number}")
