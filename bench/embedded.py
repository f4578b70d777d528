"""The embedded voice: seconds to the first sound and real-time factor of some voices, interleaved, medians."""

from __future__ import annotations

import argparse
import os
import statistics
import time

from higgs_server import Synthesizer
from higgs_server.types import SAMPLING_RATE

TEXTS = {
    "en": "The ferry leaves at dawn. Nobody on the pier had slept, and a gull on the rail watched us drink our coffee.",
    "zh": "渡船天亮时开。码头上谁也没有睡，栏杆上的一只海鸥看着我们喝咖啡。",
}
CASES = [("belinda", "en"), ("en_man", "en"), ("chadwick", "en"), ("zh_woman", "zh"), ("zh_man", "zh")]


def measure(speech: Synthesizer, voice: str, language: str) -> tuple[float, float]:
    """Seconds to the first sound; seconds of work for a second of sound."""
    started = time.perf_counter()
    first, samples = 0.0, 0
    for chunk in speech.stream(TEXTS[language], ref_audio=voice):
        first = first or time.perf_counter() - started
        samples += len(chunk.samples)
    return first, (time.perf_counter() - started) * SAMPLING_RATE / samples


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    started = time.perf_counter()
    speech = Synthesizer.from_pretrained("embedded")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; loaded in {time.perf_counter() - started:.1f} s")
    found: dict[tuple[str, str], list[tuple[float, float]]] = {case: [] for case in CASES}
    for _ in range(rounds):
        for case in CASES:
            found[case].append(measure(speech, *case))
    print("voice      text  first sound, s  real-time factor")
    for (voice, language), figures in found.items():
        first, factor = (statistics.median(column) for column in zip(*figures, strict=True))
        print(f"{voice:<10} {language:<5} {first:14.2f}  {factor:16.3f}")


if __name__ == "__main__":
    main()
