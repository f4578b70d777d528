"""Clients against a server: time to the first sound, sound made a second and refusals, one line a number of clients.

    python bench/load.py --url http://localhost:8000 --clients 1,2,4,8,16
    python bench/load.py --model-path embedded

A closed loop: each client asks for the next text when it has heard the last one, so a slow server is asked less. Who is
refused waits as long as Retry-After says. What is unfinished when the time is over is cut off: its sound up to there
counts, and its end does not.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from server_process import ServerProcess

TEXTS = (
    "The ferry leaves at dawn.",
    "Nobody on the pier had slept, and a gull on the rail watched us drink our coffee.",
    "Take the second road after the bridge; the house with the green door is ours.",
)
BYTES_A_SECOND = 2 * 24_000
TINY = "tiny"


@dataclass
class Level:
    """What happened with one number of clients. `first` are seconds to the first sound."""

    finished: int = 0
    refused: int = 0
    failed: int = 0
    heard: float = 0.0
    first: list[float] = field(default_factory=list)

    def row(self, clients: int, seconds: float) -> str:
        """A line of the table."""
        p50, p95 = (f"{percentile(self.first, share):.3f}" if self.first else "–" for share in (50, 95))
        counts = f"{self.finished} | {self.refused} | {self.failed}"
        return f"| {clients} | {p50} | {p95} | {self.heard / seconds:.2f} | {counts} |"


def percentile(values: list[float], share: int) -> float:
    return values[0] if len(values) == 1 else statistics.quantiles(values, n=100, method="inclusive")[share - 1]


async def ask(client: httpx.AsyncClient, body: dict[str, object], level: Level) -> None:
    """One text, heard to its end."""
    started = time.perf_counter()
    async with client.stream("POST", "/v1/audio/speech", json=body) as answer:
        if answer.status_code in (429, 503):
            level.refused += 1
            await asyncio.sleep(float(answer.headers.get("retry-after", 1)))
            return
        if answer.status_code != 200:
            level.failed += 1
            await asyncio.sleep(1)
            return
        first = True
        async for data in answer.aiter_raw():
            if first and data:
                level.first.append(time.perf_counter() - started)
                first = False
            level.heard += len(data) / BYTES_A_SECOND
    level.finished += 1


async def measure(url: str, clients: int, options: argparse.Namespace, turns: int = 10**9) -> Level:
    """So many clients for so long, with so many texts each at most."""
    level = Level()
    headers = {"authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    limits = httpx.Limits(max_connections=None)

    async def listen(number: int) -> None:
        for turn in range(number, number + turns):
            text = options.text or TEXTS[turn % len(TEXTS)]
            body = {"input": text, "voice": options.voice, "response_format": "pcm", "seed": turn}
            try:
                await ask(client, body, level)
            except httpx.HTTPError:
                level.failed += 1
                await asyncio.sleep(1)

    async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=None) as client:
        listeners = [asyncio.create_task(listen(number)) for number in range(clients)]
        await asyncio.wait(listeners, timeout=options.seconds)
        for listener in listeners:
            listener.cancel()
        await asyncio.gather(*listeners, return_exceptions=True)
    return level


@contextmanager
def server(options: argparse.Namespace) -> Iterator[str]:
    """The address of the server to ask: the given one, or one started here."""
    if options.url:
        yield options.url.rstrip("/")
        return
    with tempfile.TemporaryDirectory() as folder:
        model = options.model_path
        if model == TINY:
            from make_tiny_checkpoint import make_tiny_checkpoint

            model = str(make_tiny_checkpoint(Path(folder)))
        with ServerProcess(["--model-path", model, *options.flags]) as process:
            process.wait_ready(options.loading)
            yield process.url


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", help="a server that runs")
    where.add_argument("--model-path", help=f"start one with this model: embedded, {TINY}, a folder or a hub id")
    parser.add_argument("--clients", default="1,2,4,8,16", help="numbers of clients, one after another")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each number of clients")
    parser.add_argument("--text", help="what is spoken; by default short sentences in turn")
    parser.add_argument("--voice", default="belinda")
    parser.add_argument("--api-key", default=os.environ.get("HIGGS_SERVER_API_KEY", ""))
    parser.add_argument("--loading", type=float, default=600.0, help="seconds that the model may take to load")
    parser.add_argument("flags", nargs="*", help="of the server that is started, behind --")
    options = parser.parse_args()
    with server(options) as url:
        asyncio.run(measure(url, 1, options, turns=1))  # warms it up
        print(
            f"{url}, closed loop, {options.seconds:g} s each; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n"
        )
        print("| clients | first sound p50 s | p95 s | sound s/s | finished | refused | failed |")
        print("|---|---|---|---|---|---|---|")
        for clients in map(int, options.clients.split(",")):
            print(asyncio.run(measure(url, clients, options)).row(clients, options.seconds), flush=True)


if __name__ == "__main__":
    main()
