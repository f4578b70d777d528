"""A server with quantised weights: they are packed at the first start and found at the second, as is a voice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from make_tiny_checkpoint import make_tiny_checkpoint
from server_process import ServerProcess


def test_the_second_start_finds_what_the_first_one_left(tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path / "model", layout="original", seed=4)
    request = {"text": "Hello there.", "ref_audio": "belinda", "seed": 5, "max_new_tokens": 30}
    answers: list[dict[str, Any]] = []
    kept: list[set[Path]] = []
    hits: list[bool] = []
    for _ in range(2):
        arguments = ["--model-path", str(folder), "--quantization", "int8"]
        with ServerProcess(arguments, env={"HF_HOME": str(tmp_path / "cache")}, cwd=folder) as process:
            process.wait_ready()
            with httpx.Client(base_url=process.url, timeout=120) as client:
                assert client.get("/info").json()["dtype"] == "int8"
                answers.append(client.post("/generate", json=request).raise_for_status().json())
                hits.append("higgs_prefix_cache_hits_total 1.0" in client.get("/metrics").text)
        kept.append(set((tmp_path / "cache").rglob("*.safetensors")))
    assert answers[0]["audio_base64"] == answers[1]["audio_base64"]
    assert kept[0] == kept[1]
    assert hits == [False, True]
    assert all(any(kind in file.parts for file in kept[0]) for kind in ("weights", "prefixes"))
