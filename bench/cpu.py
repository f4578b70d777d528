"""Higgs Audio v2 on this CPU in its true shape, quantised: beside transformers' generate and the memory's speed.

    python bench/cpu.py [--phases start,prefill,step,cached,four,memory,codec,exactness] [--kinds int8,int4]
                        [--layers 28] [--steps 24] [--threads N] [--folder DIR]

Peers run in processes of their own (bench/cpu_peers.py) and take turns, step by step, so that both see one machine.
Random weights. Needs the extra [higgs], 14 GB of memory and 11 GB of disk in --folder, where packed weights stay for
the next run. Fewer --layers for a trial: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from peers import CODEC_CONTEXT, CONTEXT, Peer, Table
from true_shape import bandwidth, machine

PEERS = Path(__file__).with_name("cpu_peers.py")
PHASES = ("start", "prefill", "step", "cached", "four", "memory", "codec", "exactness")
SPEECH_FRAMES = 100
"""A request for four seconds of speech, of which transformers' generate gives nothing before its end."""
WINDOWS = {"first": (0, 2 + CODEC_CONTEXT, 2), "later": (CODEC_CONTEXT, 32 + 2 * CODEC_CONTEXT, 32)}
"""The codec's: frames of context on the left, all frames, and how many of them are new."""


def physical_cores() -> int:
    """Cores this process may use, two threads of one core counted once."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text() if siblings.is_file() else cpu)
    return len(cores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phases", default=",".join(PHASES))
    parser.add_argument("--kinds", default="int8,int4")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--exact-layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "higgs-bench")
    args = parser.parse_args()
    phases, kinds = args.phases.split(","), args.kinds.split(",")
    if unknown := set(phases) - set(PHASES):
        parser.error(f"no such phase: {', '.join(unknown)}")
    torch.set_num_threads(args.threads)
    bench = Bench(args, phases)
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()}, {args.threads} threads, load {os.getloadavg()[0]:.1f}, "
        f"torch {torch.__version__}, {args.layers} layers, context {CONTEXT}"
    )
    print(f"read bandwidth {bench.bandwidth / 1e9:.1f} GB/s")
    if set(phases) - {"codec", "exactness"}:
        for kind in kinds:
            bench.kind(kind)
    if "codec" in phases:
        bench.codec()
    print(f"read bandwidth at the end {bandwidth(torch.device('cpu')) / 1e9:.1f} GB/s, load {os.getloadavg()[0]:.1f}")
    bench.table(kinds)
    if "exactness" in phases:
        bench.exactness()


class Bench(Table):
    """Runs phases and keeps their figures."""

    def __init__(self, args: argparse.Namespace, phases: list[str]) -> None:
        super().__init__()
        self.args, self.phases = args, phases
        # Huge pages, as the images and `make serve` ask for them; for transformers too.
        self.env = {"BENCH_THREADS": str(args.threads), "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        self.bandwidth = bandwidth(torch.device("cpu"))
        self.step: dict[str, float] = {}
        self.codec_ms: float | None = None

    def peer(self, *arguments: str) -> Peer:
        return Peer(PEERS, *arguments, env=self.env)

    def weights(self, kind: str) -> Path:
        """The file, built where it is not there or of another format."""
        self.args.folder.mkdir(parents=True, exist_ok=True)
        file: Path = self.args.folder / f"{self.args.layers}-layers-{kind}.safetensors"
        if not file.is_file():
            print(f"packing {file}", flush=True)
            command = [sys.executable, str(PEERS), "build", str(file), str(self.args.layers), kind]
            subprocess.run(command, check=True, env=os.environ | self.env)
        return file

    def kind(self, kind: str) -> None:
        """All that is measured of one quantisation, transformers beside it where they are compared."""
        layers = str(self.args.layers)
        file = self.weights(kind)
        ours = self.peer("ours", str(file), layers)
        if "start" in self.phases:
            starts = [ours.start_seconds]
            for _ in range(4):
                ours.close()
                ours = self.peer("ours", str(file), layers)
                starts.append(ours.start_seconds)
            row = "second start to ready, s (shortest to longest)"
            self.note(row, kind, f"{statistics.median(starts):.1f} ({min(starts):.1f} to {max(starts):.1f})")
        ours_prefill = [ours.ask("prefill")["ms"]]
        if {"prefill", "step", "cached"} & set(self.phases):
            theirs = self.peer("theirs", layers)
            their_prefill = theirs.ask("prefill")["ms"]
            ours_prefill.append(ours.ask("prefill")["ms"])
            if "prefill" in self.phases:
                self.note("prefill of 335, s", "transformers", f"{their_prefill / 1e3:.2f}")
                best = min(ours_prefill)
                self.note("prefill of 335, s", kind, f"{best / 1e3:.2f} ({their_prefill / best:.1f} x as fast)")
            their_step = self.steps(kind, ours, theirs)
            theirs.close()
            if "cached" in self.phases:
                self.cached(kind, ours, their_prefill, their_step)
        if "memory" in self.phases:
            used = ours.ask("memory")
            self.note(
                "memory, GB resident (of it the process's own; the most)",
                kind,
                f"{used['resident']:.1f} ({used['own']:.1f}; {used['most']:.1f})",
            )
        if "four" in self.phases:
            self.four(kind, ours)
        ours.close()

    def steps(self, kind: str, ours: Peer, theirs: Peer) -> float:
        """A step of one, a step of the other, and so on."""
        pairs = [(ours.ask("step")["ms"], theirs.ask("step")["ms"]) for _ in range(self.args.steps)][2:]
        ms, their_ms = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in pairs)
        read = ours.hello["step_bytes"]
        floor = read / self.bandwidth * 1e3
        self.step[kind] = ms
        if "step" in self.phases:
            row = "decode step, ms (fastest)"
            self.note(row, "transformers", f"{their_ms:.0f} ({min(b for _, b in pairs):.0f})")
            self.note(row, kind, f"{ms:.0f} ({min(a for a, _ in pairs):.0f}), {ratio:.2f} x as fast")
            row = "bytes read a step / bandwidth"
            self.note(row, kind, f"{read / 1e9:.2f} GB: {floor:.0f} ms, the step takes {ms / floor:.2f} x that")
            for speed in (40, 65, 80):
                projected = ms * self.bandwidth / (speed * 1e9)
                self.note(f"PROJECTION to {speed} GB/s at this efficiency, ms", kind, f"{projected:.0f}")
        return their_ms

    def cached(self, kind: str, ours: Peer, their_prefill: float, their_step: float) -> None:
        """The voice is on disk: until the first sound, beside all that transformers does before there is any."""
        ours.ask("keep")
        best = min((ours.ask("cached") for _ in range(3)), key=lambda result: result["ms"])
        assert best["hits"] == 1
        whole = their_prefill + SPEECH_FRAMES * their_step
        self.note("of it prefill of 35, s", kind, f"{best['prefill'] / 1e3:.2f}")
        row = "cached voice, request to first audio, s"
        self.note(row, kind, f"{best['ms'] / 1e3:.2f} ({whole / best['ms']:.1f} x as fast as generate)")
        self.note(row, "transformers", f"{whole / 1e3:.1f} (prefill and {SPEECH_FRAMES} steps; it does not stream)")

    def four(self, kind: str, ours: Peer) -> None:
        ours.ask("join")
        pairs = [(ours.ask("step")["ms"], ours.ask("four")["ms"]) for _ in range(max(4, self.args.steps // 2))][1:]
        ratio = statistics.median(4 * one / four for one, four in pairs)
        ms = statistics.median(four for _, four in pairs)
        self.note("4 streams in a step, ms", kind, f"{ms:.0f}, {ratio:.2f} x the frames of one")

    def codec(self) -> None:
        peer = self.peer("codec")
        for name, (left, frames, new) in WINDOWS.items():
            ms = min(peer.ask(f"{left} {frames}")["ms"] for _ in range(5))
            self.note(f"codec, {name} window ({new} new of {frames} frames), ms", "torch", f"{ms:.0f}")
            self.codec_ms = ms / new
        self.note("codec, s a second of audio", "torch", f"{self.codec_ms * 25 / 1e3:.3f}")
        peer.close()

    def exactness(self) -> None:
        print(f"\nlogits against float32, teacher-forced, {self.args.exact_layers} layers of the true width, outliers")
        print("\n| | relative error | top-1 agreement |\n|---|---|---|")
        for result in self.peer("exactness", str(self.args.exact_layers)).rest():
            print(f"| {result['label']} | {result['error']:.4f} | {result['agreement']:.3f} |", flush=True)

    def table(self, kinds: list[str]) -> None:
        if self.codec_ms is not None:
            for kind, ms in self.step.items():
                for speed in (40, 65, 80):
                    factor = (ms * self.bandwidth / (speed * 1e9) + self.codec_ms) / 40
                    self.note(f"PROJECTION to {speed} GB/s, real-time factor, codec included", kind, f"{factor:.2f}")
        self.print(*kinds, "transformers", "torch")


if __name__ == "__main__":
    main()
