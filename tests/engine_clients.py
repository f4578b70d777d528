"""Clients of an engine: requests of all kinds, what comes of them, and whether anything is left behind."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from fake_model import prompt
from higgs_server.engine.engine import Engine
from higgs_server.engine.handle import Handle
from higgs_server.engine.interface import FrameModel, Run
from higgs_server.types import SamplingParams, SpeechError
from scripted_model import ScriptedModel

PATIENCE = 120
"""Seconds after which something that never comes fails the test instead of hanging it."""


def settle(engine: Engine) -> None:
    """Waits until the engine has nothing to do, then looks for leaks.

    An utterance of several rounds at the end of the queue makes sure that the statistics are not those of before.
    """
    frames_of(engine.submit(prompt(1), params(rows=12)))

    def idle() -> bool:
        return not (engine._submitted or engine._cancelled or engine._stats.running or engine._stats.waiting)

    with engine._wake:
        assert engine._wake.wait_for(idle, PATIENCE)
    assert not engine._handles
    assert not engine._tickets
    assert not engine._runner._keys
    assert engine._scheduler._slots == [None] * engine.slots
    assert not engine._runner._state.active.any()
    assert not engine._runner._state.position.any()


def params(seed: int = 1, rows: int = 40, **fields: object) -> SamplingParams:
    return SamplingParams(**{"seed": seed, "max_new_tokens": rows} | fields)  # type: ignore[arg-type]


def text_of(length: int) -> list[int]:
    """So many tokens, all of which a tiny checkpoint knows."""
    return [number % 250 for number in range(length)]


def a_request(number: int, rows: int = 40) -> tuple[list[Run], SamplingParams]:
    """Requests that differ in everything."""
    dice = random.Random(number)
    tokens = [dice.randrange(100, 250) for _ in range(dice.randrange(1, 40))]
    sampling = params(
        seed=number,
        rows=dice.randrange(10, rows + 1),
        temperature=dice.choice([0.0, 0.7, 1.3]),
        top_k=dice.choice([None, 0, 1, 5, 50]),
        top_p=dice.choice([0.5, 0.95, 1.0]),
        ras_win_len=dice.choice([None, 0, 3, 7]),
    )
    return prompt(*tokens, audio=dice.choice([0, 9]), seed=number), sampling


def frames_of(handle: Handle) -> np.ndarray:
    parts = list(handle)
    assert all(part.shape[0] >= 1 for part in parts)
    return np.concatenate([np.empty((0, 8), dtype=np.int64), *parts])


def rows_of(handle: Handle) -> list[list[int]]:
    frames_of(handle)
    return handle.rows.tolist()  # type: ignore[no-any-return]


def alone(network: FrameModel, runs: list[Run], sampling: SamplingParams, **options: int) -> list[list[int]]:
    """The rows of an utterance that has an engine for itself."""
    with Engine(ScriptedModel(network), slots=1, max_len=400, prefill_budget=16) as engine:
        return rows_of(engine.submit(runs, sampling, **options))


@contextmanager
def failing(cause: str) -> Iterator[pytest.ExceptionInfo[SpeechError]]:
    """For a block that ends with an exception of that text, of which only the kind is told."""
    with pytest.raises(SpeechError, match=r"\(RuntimeError\)") as failed:
        yield failed
    assert cause in str(failed.value.__cause__)
    assert cause not in f"{failed.value} {failed.value.zh}"


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)
