"""Load for long: every answer right or refused, and nothing left behind. SOAK_SECONDS says how long, 300 by default."""

from __future__ import annotations

import asyncio
import statistics
from pathlib import Path

import psutil
import pytest

from listeners import Listeners, Utterance, listen_all
from make_tiny_checkpoint import make_tiny_checkpoint
from metrics_of import idle_metrics
from server_process import ServerProcess
from soak.duration import SECONDS

pytestmark = pytest.mark.soak


WARM = min(60.0, SECONDS / 3)
GROWTH_MB = 40.0
"""What memory may differ between the first and the last quarter after warming up; a leaked answer a second is more."""
WORKERS = 64 + 4
"""Threads of the pool that may all have been started meanwhile, and a few for what ends just now."""


def _embedded(folder: Path) -> tuple[list[str], list[Utterance], int]:
    texts = ["Good morning.", "The ferry leaves at dawn, and nobody sleeps.", "Is it far from here?", "Yes, of course!"]
    return ["--model-path", "embedded"], [Utterance(text, 1, 2048, "belinda") for text in texts], 8


def _tiny(folder: Path) -> tuple[list[str], list[Utterance], int]:
    make_tiny_checkpoint(folder, seed=4)
    texts = ["Good morning.", "The ferry leaves at dawn."]
    utterances = [Utterance(text, seed, 30, voice) for text in texts for seed in (1, 2) for voice in (None, "belinda")]
    return ["--model-path", str(folder)], utterances, 64


async def _watched(process: psutil.Process, listeners: Listeners, clients: int) -> tuple[list[int], list[float]]:
    """What each client heard, and the process's memory in MB, a sample a second after warming up."""
    memory: list[float] = []

    async def watch() -> None:
        await asyncio.sleep(WARM)
        while True:
            memory.append(process.memory_info().rss / 1e6)
            await asyncio.sleep(1)

    watching = asyncio.create_task(watch())
    counts = await listen_all(listeners, clients, SECONDS)
    watching.cancel()
    return counts, memory


@pytest.mark.parametrize("model", [_tiny, _embedded], ids=["tiny", "embedded"])
def test_load(model: object, tmp_path: Path) -> None:
    flags, utterances, clients = model(tmp_path)  # type: ignore[operator]
    with ServerProcess(flags) as server:
        server.wait_ready()
        listeners = Listeners.taught(server.url, utterances)
        process = psutil.Process(server.process.pid)
        idle_metrics(server.url)
        threads, files = process.num_threads(), process.num_fds()
        counts, memory = asyncio.run(_watched(process, listeners, clients))
        quarter = max(1, len(memory) // 4)
        grown = statistics.median(memory[-quarter:]) - statistics.median(memory[:quarter])
        after = idle_metrics(server.url)
        print(
            f"\n{clients} clients, {SECONDS:g} s: {sum(counts)} whole answers ({dict(listeners.heard)}), "
            f"{listeners.refused} refused; memory {memory[0]:.0f} to {memory[-1]:.0f} MB, {grown:+.1f} MB by quarters; "
            f"threads {threads} to {process.num_threads()}, files {files} to {process.num_fds()}"
        )
        assert listeners.wrong == listeners.unfinished == []
        assert min(counts) >= statistics.mean(counts) // 4, f"somebody heard next to nothing: {counts}"
        assert grown < GROWTH_MB
        assert process.num_threads() <= threads + WORKERS
        assert process.num_fds() <= files + 2
        assert after("higgs_cancels_total") == 0
        assert set(listeners.heard) == {"generate", "generate-stream", "pcm", "sse", "mp3", "websocket"}
        assert server.stop() == 0
    assert "Traceback" not in server.log
