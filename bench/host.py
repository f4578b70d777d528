"""What is left for a GPU's speed to wait for: clients of a server whose network and codec cost nothing.

    python bench/host.py [--clients 1,16,64] [--step-ms 3] [--seconds 10]

One process speaks for all clients, so what Python does for a second of sound limits how many seconds there are in one.
The clients take their share of this machine, which a server has for itself elsewhere.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import load

from make_tiny_checkpoint import make_tiny_checkpoint
from server_process import ServerProcess

FRAMES = 250
TEXT = "Nobody on the pier had slept, and a gull on the rail watched us drink our coffee."


class WeightlessServer(ServerProcess):
    """See weightless.py."""

    script = Path(__file__).with_name("weightless.py")


def main() -> None:
    """Prints a line a number of clients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", default="1,16,64", help="numbers of clients, one after another")
    parser.add_argument("--step-ms", type=float, default=3.0, help="what a step of any batch takes")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each number of clients")
    args = parser.parse_args()
    clients = [int(number) for number in args.clients.split(",")]
    options = argparse.Namespace(api_key="", text=TEXT, voice="belinda", seconds=args.seconds)
    flags = ["--device", "cpu", "--guard", "0", "--max-new-tokens", str(FRAMES)]
    flags += ["--max-running", str(max(clients)), "--max-context", "1280"]
    print(
        f"a step of {args.step_ms:g} ms, {args.seconds:g} s each; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    print("\n| clients | first sound p50 ms | p95 ms | sound s/s | the device's | server's CPU ms a second of sound |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        model = str(make_tiny_checkpoint(Path(folder)))
        env = {"BENCH_STEP_MS": str(args.step_ms)}
        with WeightlessServer(["--model-path", model, *flags], env=env) as process:
            process.wait_ready()
            server = psutil.Process(process.process.pid)
            for number in clients:
                asyncio.run(load.measure(process.url, number, options, turns=1))
                began, busy = time.perf_counter(), sum(server.cpu_times()[:2])
                level = asyncio.run(load.measure(process.url, number, options))
                seconds, busy = time.perf_counter() - began, sum(server.cpu_times()[:2]) - busy
                p50, p95 = (load.percentile(level.first, share) * 1e3 for share in (50, 95))
                device = number * 40 / args.step_ms
                print(
                    f"| {number} | {p50:.0f} | {p95:.0f} | {level.heard / seconds:.1f} | {device:.1f} | "
                    f"{busy / level.heard * 1e3:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
