"""What cpu.py and gpu.py share: processes that take turns, the request they are asked for, and the table of figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from higgs_server.engine.runner import Runner, Ticket
    from higgs_server.engine.sequence import Sequence as Utterance

VOICE_TEXT, VOICE_ROWS, NEW_TEXT = 60, 240, 34
"""The request: system message and transcript, the clip's rows, the text to speak. 335 with the answer's first row."""
CONTEXT = VOICE_TEXT + VOICE_ROWS + NEW_TEXT + 1
ROWS = 600
"""The longest answer."""
TEXT_TOKENS = 256
"""Letters of the tests' small tokenizer: what is above them has a meaning."""
CODEC_CONTEXT = 10
"""Frames on either side of those to be heard that the codec sees."""


class Peer:
    """A process that answers commands."""

    def __init__(self, script: Path, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        began = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, str(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self.hello = self.read()
        self.start_seconds = time.perf_counter() - began

    def read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a peer ended early: {self._process.args}")
        return json.loads(line)  # type: ignore[no-any-return]

    def ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(command, file=self._process.stdin, flush=True)
        return self.read()

    def rest(self) -> list[dict[str, Any]]:
        """What it says until it ends by itself, the first answer included."""
        assert self._process.stdout is not None
        return [self.hello, *map(json.loads, self._process.stdout)]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Table:
    """Figures: rows, a column a peer, printed as they come and once more together."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, str]] = {}

    def note(self, row: str, column: str, value: str) -> None:
        self.rows.setdefault(row, {})[column] = value
        print(f"  {column}: {row}: {value}", flush=True)

    def print(self, *wanted: str) -> None:
        """`wanted`: the columns in order, of which empty ones are left out."""
        columns = [column for column in wanted if any(column in row for row in self.rows.values())]
        print(f"\n| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
        for name, row in self.rows.items():
            print(f"| {name} | {' | '.join(row.get(column, '') for column in columns)} |")


# --- inside a peer --------------------------------------------------------------------------------------------------


def answer(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def commands() -> Iterator[str]:
    for line in sys.stdin:
        yield line.strip()


def since(began: float) -> float:
    return (time.perf_counter() - began) * 1e3


def request(tokens: int = 1000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Text, rows and text. `tokens`: how many the vocabulary has for text."""
    dice = np.random.default_rng(0)
    text, rows = dice.integers(0, tokens, VOICE_TEXT), dice.integers(0, 1024, (VOICE_ROWS, 8))
    return text, rows, dice.integers(0, tokens, NEW_TEXT)


class Utterances:
    """Requests in the slots of a Runner, sampled with the server's defaults, as the engine's thread has them."""

    def __init__(self, runner: Runner, prefill_budget: int, tokens: int = 1000) -> None:
        self._runner, self._budget = runner, prefill_budget
        self._voice_text, self._rows, self.text = request(tokens)
        self._running: dict[int, Utterance] = {}

    def start(self, slot: int, text: np.ndarray) -> None:
        """Reads the whole prompt and draws the first row."""
        from higgs_server.engine.interface import AudioRun, TextRun
        from higgs_server.engine.scheduler import Piece
        from higgs_server.engine.sequence import Sequence as Utterance
        from higgs_server.types import SamplingParams

        begin = AudioRun(np.full((1, 8), 1024))
        sampling = SamplingParams(seed=slot, max_new_tokens=ROWS)
        runs = [TextRun(self._voice_text), AudioRun(self._rows), TextRun(text), begin]
        prefix = VOICE_TEXT + VOICE_ROWS
        utterance = Utterance(runs, sampling, self._runner.format, prefix_len=prefix, repeat_limit=None)
        utterance.slot = slot
        at = 0
        while at < utterance.prompt_len:
            to = utterance.next_cut(at, self._budget)
            ticket = self._runner.prefill(Piece(utterance, at, to))
            at = to
        if ticket is not None:
            self.read(ticket)
        self._running[slot] = utterance

    def launch(self, slots: Sequence[int]) -> Ticket:
        utterances = [self._running[slot] for slot in slots]
        return self._runner.decode(utterances, utterances)

    def read(self, ticket: Ticket) -> None:
        for utterance, row in self._runner.read(ticket):
            utterance.append(row)  # type: ignore[arg-type]

    def step(self, slots: Sequence[int]) -> None:
        self.read(self.launch(slots))

    def stop(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self._runner.release(self._running.pop(slot), slot)
