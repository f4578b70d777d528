"""Every example of the README and of docs/ runs as it is printed, but for the server's address.

The rule: a fenced block in a language of RUN is run, whole, in an empty folder that holds `examples/` only. Left out
are blocks in which every command starts a server or installs something (BY_HAND); those that need packages which the
tests do not install (ELSEWHERE) are compiled only. Blocks in a language of SHOWN are not for running. Any other
language, and a block without one, is a failure.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from docs.page import ROOT, Block, Page
from higgs_server.audio.decode import decode
from higgs_server.types import SpeechRequest
from server_process import ServerProcess

ADDRESS = "//localhost:8000"
RUN = {
    "bash": ["bash", "-euo", "pipefail", "-c"],
    "python": [sys.executable, "-W", "error", "-c"],
    "javascript": ["node", "--input-type=module", "-e"],
}
SHOWN = {"json", "text"}
BY_HAND = ("git clone ", "make ", "pip install ", "python api_server.py", "higgs-server serve")
ELSEWHERE = ("from livekit.", "from pipecat.")
TELLS_VOICES = "except NotFoundError"
"""The example that asks for a voice which does not exist."""
NEEDS_CLONING = "ref_audio_file=@"
"""Examples for Higgs Audio v2: against the embedded voice they end with the refusal that the README names."""

ENGLISH, CHINESE = Page("README.md"), Page("README.zh-CN.md")
PAIRS = [(ENGLISH, CHINESE), (Page("docs/clients.md"), Page("docs/clients.zh-CN.md"))]
each_pair = pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].name)


def _by_hand(block: Block) -> bool:
    commands = [line for line in block.code.splitlines() if line.strip()]
    started = [line.startswith(BY_HAND) for line in commands]
    assert all(started) or not any(started), f"line {block.line}: a block is for running or for the reader, not both"
    return all(started)


EXAMPLES = [
    pytest.param(block, id=f"{page.name}-{block.language}-line-{block.line}")
    for page, _ in PAIRS
    for block in page.blocks
    if block.language in RUN and not _by_hand(block)
]


@each_pair
def test_languages_of_blocks_are_known(pair: tuple[Page, Page]) -> None:
    for page in pair:
        assert {block.language for block in page.blocks} <= RUN.keys() | SHOWN


def test_there_are_examples_in_every_language() -> None:
    assert {block.language for block in ENGLISH.blocks} >= RUN.keys()


@each_pair
def test_both_pages_have_the_same_examples(pair: tuple[Page, Page]) -> None:
    """So running those of one page is running those of both. Text for people is in the language of its page."""
    english, chinese = (
        [(block.language, "" if block.language == "text" else block.code) for block in page.blocks] for page in pair
    )
    assert english == chinese


def test_json_blocks_are_requests() -> None:
    requests = [block.code for block in ENGLISH.blocks if block.language == "json"]
    assert requests
    for request in requests:
        assert json.loads(request).keys() <= SpeechRequest.model_fields.keys()
        SpeechRequest.model_validate_json(request)


@pytest.mark.parametrize("block", EXAMPLES)
def test_example_runs_as_printed(block: Block, server: ServerProcess, tmp_path: Path) -> None:
    if block.code.startswith(ELSEWHERE):
        compile(block.code, f"line {block.line}", "exec")
        return
    command = RUN[block.language]
    if shutil.which(command[0]) is None or ("curl " in block.code and shutil.which("curl") is None):
        pytest.skip(f"this machine has no {command[0]} or no curl")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    result = subprocess.run(
        [*command, block.code.replace(ADDRESS, server.url.removeprefix("http:"))],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    outputs = [tmp_path / name for name in re.findall(r"(?<![\w/])\w+\.(?:wav|pcm|mp3|opus)\b", block.code)]
    if NEEDS_CLONING in block.code:
        assert result.returncode == 22, result.stderr
        assert json.loads(outputs[0].read_bytes())["error"]["code"] == "unsupported"
        return
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    if TELLS_VOICES in block.code:
        assert "belinda" in result.stdout
        return
    if "audio" in block.code or "say " in block.code:
        assert outputs or '"type": "audio"' in result.stdout
    for output in outputs:
        samples = _samples(output)
        assert len(samples) > 0.3 * 24_000
        assert np.abs(samples).max() > 1_000


def _samples(file: Path) -> np.ndarray:
    if file.suffix == ".pcm":
        return np.frombuffer(file.read_bytes(), "<i2").astype(np.int32)
    if file.suffix != ".wav":
        return (decode(file.read_bytes()).samples * 32767).astype(np.int32)
    with wave.open(str(file)) as sound:
        assert (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) == (24_000, 1, 2)
        return np.frombuffer(sound.readframes(sound.getnframes()), "<i2").astype(np.int32)
