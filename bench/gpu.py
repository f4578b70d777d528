"""Higgs Audio v2 on an NVIDIA GPU in its true shape: beside the memory's speed and transformers' generate.

    python bench/gpu.py [--phases step,batch,int8,codec,profile,memory,http] [--streams 1,32,64,256] [--folder DIR]
                        [--boson DIR]
    python bench/gpu.py --tiny       try the bench itself with a tiny model, on any machine: its figures mean nothing

Random weights. Peers run in processes of their own and take turns. Needs the extra [higgs], 13 GB
of disk in --folder, where the weights stay for the next run, and a GPU with the memory for all --streams at once.
boson_multimodal needs an older transformers than ours, so it is a peer only where --boson has both:

    pip install --no-deps --target DIR boson-multimodal==0.1.1 transformers==4.46.3 tokenizers==0.20.3 \\
        huggingface-hub==0.26.5
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import load
from peers import CONTEXT, Peer, Table
from true_shape import machine

OUR_SIDE, THEIR_SIDE = (Path(__file__).with_name(name) for name in ("gpu_ours.py", "gpu_theirs.py"))
PHASES = ("step", "batch", "int8", "codec", "profile", "memory", "http")
OURS, PLAIN, TORCH, INT8 = "higgs-audio-server", "without graphs", "without kernels", "int8"
THEIRS = {"transformers": ("transformers", "dynamic"), "transformers, static cache": ("transformers", "static")}
STEP = "one stream, ms a frame (real-time factor)"
FRAME_MS = 40
FRAMES, MAX_CONTEXT = 250, 1280
"""What the server speaks for each request, and the context it has for prompt and answer."""
TEXT = "Nobody on the pier had slept, and a gull on the rail watched us drink our coffee."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phases", default=",".join(PHASES))
    parser.add_argument("--streams", help="utterances at once, for each of which batch and http measure")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "higgs-bench")
    parser.add_argument("--boson", type=Path, metavar="DIR", help="where boson_multimodal and its transformers are")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, few and short measurements")
    args = parser.parse_args()
    phases = args.phases.split(",")
    if unknown := set(phases) - set(PHASES):
        parser.error(f"no such phase: {', '.join(unknown)}")
    if not (args.tiny or torch.cuda.is_available()):
        raise SystemExit("bench/gpu.py measures an NVIDIA GPU and finds none; --tiny tries it out without one.")
    streams = args.streams or ("1,2" if args.tiny else "1,32,64,256")
    bench = Bench(args.folder, args.tiny, [int(number) for number in streams.split(",")])
    if args.boson:
        bench.theirs["boson_multimodal"] = ("boson", str(args.boson))
    else:
        print("boson_multimodal is not measured: it needs --boson")
    bench.run(phases)


class Bench(Table):
    """Runs phases and keeps their figures."""

    def __init__(self, folder: Path, tiny: bool, streams: list[int]) -> None:
        super().__init__()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.streams = streams
        self.theirs = dict(THEIRS)
        self.rounds, self.steps = (2, 4) if tiny else (9, 30)
        self.seconds, self.texts = (300.0, 2) if tiny else (15.0, 10**9)
        kind = "tiny" if tiny else "true"
        self.folder = folder / kind
        if not self.folder.is_dir():
            print(f"making {self.folder}", flush=True)
            unfinished = folder / f"{kind}.unfinished"
            subprocess.run([sys.executable, str(OUR_SIDE), "build", kind, str(unfinished)], check=True)
            unfinished.rename(self.folder)

    def run(self, phases: list[str]) -> None:
        """Prints figures as they come, and all together at the end."""
        began = time.perf_counter()
        print(f"{datetime.now(UTC):%Y-%m-%d}, {machine()}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
        if inside := [phase for phase in phases if phase != "http"]:
            ours = self.speaker("none")
            print(f"{ours.hello['dtype']}, context {CONTEXT}, copy bandwidth {ours.hello['copy'] / 1e9:.0f} GB/s")
            for phase in inside:
                getattr(self, phase)(ours)
            ours.close()
        if "http" in phases:
            self.http()
        self.print(OURS, PLAIN, TORCH, INT8, *self.theirs)
        print(f"\n{time.perf_counter() - began:.0f} s in all")

    def speaker(self, quantization: str) -> Peer:
        return Peer(OUR_SIDE, "speak", str(self.folder), self.device, str(max(self.streams)), quantization)

    def floor(self, ours: Peer, streams: int) -> float:
        """Milliseconds in which the memory reads the weights, and what the streams have behind them."""
        cached = streams * (CONTEXT + self.steps // 2) * ours.hello["position"]
        return (ours.hello["weights"] + cached) / ours.hello["copy"] * 1e3  # type: ignore[no-any-return]

    def step(self, ours: Peer) -> None:
        """A few frames of one, a few of the other, and so on; the first turns are a warm-up."""
        times: dict[str, list[float]] = {OURS: [], PLAIN: [], TORCH: []}
        for column, (name, option) in self.theirs.items():
            theirs = Peer(THEIR_SIDE, name, str(self.folder), self.device, option)
            for turn in range(self.rounds):
                mine = {
                    column: ours.ask(f"{kind} 1 {self.steps}")["ms"]
                    for column, kind in ((OURS, "steps"), (PLAIN, "plain"), (TORCH, "torch"))
                }
                answers = [theirs.ask("step") for _ in range(4)]
                if failed := next((each["failed"] for each in answers if "failed" in each), None):
                    self.note(STEP, column, failed)
                    break
                if turn:
                    for own, milliseconds in mine.items():
                        times[own] += milliseconds
                    times.setdefault(column, []).extend(each["ms"] for each in answers)
            theirs.close()
        medians = {column: statistics.median(values) for column, values in times.items() if values}
        floor = self.floor(ours, 1)
        for column, ms in medians.items():
            self.note(STEP, column, f"{ms:.2f} ({ms / FRAME_MS:.3f})")
            self.note(f"times the floor of {floor:.2f} ms", column, f"{ms / floor:.2f}")
            if column != OURS:
                self.note("ours in comparison", column, f"{ms / medians[OURS]:.2f} x as fast")

    def batch(self, ours: Peer) -> None:
        """Network and sampling alone."""
        for streams in self.streams:
            ms = statistics.median(ours.ask(f"steps {streams} {self.steps}")["ms"])
            floor = self.floor(ours, streams)
            sound = f"{streams * FRAME_MS / ms:.0f} s of sound a second, {ms / floor:.2f} x the floor"
            self.note(f"a step of {streams}, ms", OURS, f"{ms:.2f}: {sound}")

    def int8(self, ours: Peer) -> None:
        """Weights in 8 bits beside those in the model's own: the two take turns."""
        eight = self.speaker("int8")
        for streams in self.streams:
            times: dict[str, list[float]] = {OURS: [], INT8: []}
            for _ in range(3):
                for column, speaker in ((OURS, ours), (INT8, eight)):
                    times[column] += speaker.ask(f"steps {streams} {self.steps}")["ms"]
            for column, speaker in ((OURS, ours), (INT8, eight)):
                ms, floor = statistics.median(times[column]), self.floor(speaker, streams)
                self.note(f"a step of {streams} in turns, ms", column, f"{ms:.2f}, {ms / floor:.2f} x its floor")
        with tempfile.TemporaryDirectory() as folder:
            logits = []
            for name, speaker in (("exact", ours), ("eight", eight)):
                speaker.ask(f"logits {folder}/{name}.npy")
                logits.append(np.load(f"{folder}/{name}.npy"))
        error = np.linalg.norm(logits[1] - logits[0]) / np.linalg.norm(logits[0])
        self.note("relative error of logits", INT8, f"{error:.4f}")
        self.note("device memory for weights, GB", INT8, f"{eight.ask('memory')['weights']:.1f}")
        eight.close()

    def codec(self, ours: Peer) -> None:
        speed = ours.ask("codec")
        row = f"codec, s of sound a second: decoded in {speed['batch']} windows at once, encoded"
        self.note(row, OURS, f"{speed['decode']:.0f}, {speed['encode']:.0f}")

    def memory(self, ours: Peer) -> None:
        used = ours.ask("memory")
        row = f"device memory, GB: weights, cache of {max(self.streams)} streams, all that is held"
        self.note(row, OURS, f"{used['weights']:.1f}, {used['cache']:.1f}, {used['now']:.1f}")

    def profile(self, ours: Peer) -> None:
        print("\nwhere a step of one stream spends its time, ms")
        for name, ms in ours.ask(f"profile {self.steps}")["kernels"]:
            print(f"  {ms:7.3f}  {name[:100]}")
        print(flush=True)

    def http(self) -> None:
        """A server with these weights, asked by clients of a cached voice that all stay until the end."""
        flags = ["--device", self.device, "--guard", "0", "--max-new-tokens", str(FRAMES)]
        flags += ["--max-running", str(max(self.streams)), "--max-context", str(MAX_CONTEXT)]
        options = argparse.Namespace(
            url=None,
            model_path=str(self.folder),
            flags=flags,
            loading=600.0,
            api_key="",
            text=TEXT,
            voice="belinda",
            seconds=self.seconds,
        )
        began = time.perf_counter()
        with load.server(options) as url:
            self.note("start to ready, s", OURS, f"{time.perf_counter() - began:.1f}")
            for clients in self.streams:
                asyncio.run(load.measure(url, clients, options, turns=1))
                began = time.perf_counter()
                level = asyncio.run(load.measure(url, clients, options, turns=self.texts))
                sound = level.heard / (time.perf_counter() - began)
                p50, p95 = (load.percentile(level.first, share) * 1e3 for share in (50, 95))
                self.note(
                    f"HTTP, {clients} clients: first sound p50, p95, ms; s of sound a second, for each client",
                    OURS,
                    f"{p50:.0f}, {p95:.0f}; {sound:.2f}, {sound / clients:.2f}"
                    + (f" ({level.failed} failed, {level.refused} refused)" if level.failed or level.refused else ""),
                )


if __name__ == "__main__":
    main()
