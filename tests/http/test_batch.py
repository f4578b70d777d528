"""`higgs-server batch` as a process: killed and started again, each line is spoken once and as `/generate` has it."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from answers import wav_samples
from server_process import ROOT, ServerProcess

SOME_FAILED = 3


@pytest.fixture
def server(native_server: ServerProcess) -> ServerProcess:
    return native_server


def write(file: Path, count: int) -> dict[str, dict[str, Any]]:
    """`count` good lines and some bad ones; returns the good ones by id."""
    requests = {
        f"line {n}": {"text": f"This is number {n}.", "seed": n, "max_new_tokens": 16, "ref_audio": "belinda"}
        for n in range(count)
    }
    good = [json.dumps({"id": name, **fields}) for name, fields in requests.items()]
    bad = ["nonsense", json.dumps({"id": "nobody", "text": "Hello.", "ref_audio": "no such voice"}), good[0]]
    half = count // 2
    file.write_text("\n".join([*good[:half], *bad, *good[half:]]))
    return requests


def start(source: Path, out: Path, server: ServerProcess, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "higgs_server.cli", "batch", str(source), "--out", str(out), *server.arguments, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )


def kill_after(process: subprocess.Popen[str], out: Path, lines: int) -> None:
    """SIGKILL once the manifest has so many lines."""
    manifest = out / "manifest.jsonl"
    while process.poll() is None and (not manifest.exists() or manifest.read_bytes().count(b"\n") < lines):
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)


def manifest_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def check(out: Path, requests: dict[str, dict[str, Any]], client: httpx.Client, every: int) -> None:
    """Each line once in the manifest, each sound whole, every n-th the same as over HTTP."""
    records = manifest_of(out)
    spoken = {record["id"]: record for record in records if record["error"] is None}
    failed = [record for record in records if record["error"] is not None]
    assert len(records) == len(spoken) + len(failed)
    assert spoken.keys() == requests.keys()
    half = len(requests) // 2
    assert [(record["id"], record["line"]) for record in sorted(failed, key=lambda record: record["line"])] == [
        (None, half + 1),
        ("nobody", half + 2),
        (None, half + 3),
    ]
    assert {file.stem for file in out.glob("*.wav")} == requests.keys()
    for number, (name, fields) in enumerate(requests.items()):
        sound = (out / f"{name}.wav").read_bytes()
        record = spoken[name]
        assert record["seed"] == fields["seed"]
        assert record["duration"] == round(len(wav_samples(sound)) / 24_000, 3)
        if number % every == 0:
            answer = client.post("/generate", json=fields).raise_for_status().json()
            assert base64.b64decode(answer["audio_base64"]) == sound
            assert answer["finish_reason"] == record["finish_reason"]


def test_killed_and_started_again_it_speaks_each_line_once(
    client: httpx.Client, server: ServerProcess, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out"
    requests = write(source, 200)
    kill_after(start(source, out, server), out, 60)
    sounds = {file: file.stat().st_mtime_ns for file in out.glob("*.wav")}
    finished = [record["id"] for record in manifest_of(out) if record["error"] is None]

    process = start(source, out, server)
    told, errors = process.communicate(timeout=300)
    assert process.returncode == SOME_FAILED, errors
    assert f"{200 - len(finished)} spoken" in told
    assert f"{len(finished)} finished before, 3 failed" in told
    assert "line 101: not valid JSON" in errors
    assert "Traceback" not in errors
    assert [file for file in sounds if file.stem in finished and file.stat().st_mtime_ns != sounds[file]] == []
    check(out, requests, client, every=17)

    again = start(source, out, server)
    assert "0 spoken (0 cut short), 200 finished before" in again.communicate(timeout=300)[0]


@pytest.mark.soak
def test_two_thousand_lines_survive_three_kills(client: httpx.Client, server: ServerProcess, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out"
    requests = write(source, 2_000)
    for lines in (400, 900, 1_500):
        kill_after(start(source, out, server), out, lines)
    process = start(source, out, server)
    _, errors = process.communicate(timeout=3_000)
    assert process.returncode == SOME_FAILED, errors
    check(out, requests, client, every=100)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no-such.jsonl", "--out", "out", "--model-path", "embedded"], "no-such.jsonl"),
        (["in.jsonl", "--out", "in.jsonl", "--model-path", "embedded"], "in.jsonl"),
        (["in.jsonl", "--out", "out", "--model-path", "/no/such/folder"], "/no/such/folder"),
    ],
)
def test_where_it_cannot_go_on_it_says_so(arguments: list[str], says: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"id": "a", "text": "Hello."}\n')
    result = subprocess.run(
        [sys.executable, "-m", "higgs_server.cli", "batch", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert says in result.stderr
    assert "Traceback" not in result.stderr
