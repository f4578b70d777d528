"""The engine on the real network: the golden rows in mixed, ragged batches, and seeds that do not feel the company."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from higgs_server.backends.higgs_v2.checkpoint import load_network
from higgs_server.backends.higgs_v2.network import HiggsNetwork
from higgs_server.backends.higgs_v2.tokenizer import HiggsTokenizer
from higgs_server.engine.engine import Engine
from higgs_server.engine.handle import Handle
from higgs_server.engine.interface import Run
from higgs_server.types import SamplingParams

GOLDEN = Path(__file__).parents[1] / "golden"
CHECKPOINT = GOLDEN / "higgs-v2-tiny-original"
CASES: list[dict[str, Any]] = json.loads((GOLDEN / "greedy_codes.json").read_text("utf-8"))["cases"]


@pytest.fixture(scope="module")
def network() -> HiggsNetwork:
    return load_network(CHECKPOINT, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def prompts(network: HiggsNetwork) -> list[list[Run]]:
    tokenizer = HiggsTokenizer(CHECKPOINT, network.config)
    return [tokenizer.runs(case["prompt"], [np.array(clip) for clip in case["reference_codes"]]) for case in CASES]


@pytest.fixture(params=[(3, 0, 64), (8, 1, 1000)], ids=["three slots", "eight slots, reading behind"])
def engine(request: pytest.FixtureRequest, network: HiggsNetwork) -> Iterator[Engine]:
    slots, lookahead, budget = request.param
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with Engine(network, slots=slots, max_len=1000, prefill_budget=budget) as engine:
        engine._runner.lookahead = lookahead
        engine._runner.padded = lookahead > 0
        yield engine
    torch.set_num_threads(threads)


def rows_of(handle: Handle) -> list[list[int]]:
    for _ in handle:
        pass
    return handle.rows.tolist()


def greedy(case: dict[str, Any]) -> SamplingParams:
    return SamplingParams(temperature=0.0, ras_win_len=0, seed=0, max_new_tokens=case["max_new_tokens"])


def sampled(seed: int) -> SamplingParams:
    dice = random.Random(seed)
    return SamplingParams(
        seed=seed,
        max_new_tokens=dice.randrange(9, 30),
        temperature=dice.choice([0.5, 1.0]),
        top_k=dice.choice([None, 10, 50]),
        top_p=dice.choice([0.8, 1.0]),
    )


def test_golden_rows_alone(engine: Engine, prompts: list[list[Run]]) -> None:
    for case, runs in zip(CASES, prompts, strict=True):
        handle = engine.submit(runs, greedy(case))
        assert rows_of(handle) == case["greedy_delayed_codes"], case["name"]
        ended = case["greedy_delayed_codes"][-1] == [1025] * 8
        assert handle.finish_reason == ("stop" if ended else "length")


def test_golden_rows_among_sampled_ones_that_come_and_go(engine: Engine, prompts: list[list[Run]]) -> None:
    """All cases twice and in any order, between requests with other parameters, some of which are cancelled."""
    dice = random.Random(3)
    order = [*range(len(CASES))] * 2
    dice.shuffle(order)
    golden: list[tuple[int, Handle]] = []
    others: list[Handle] = []
    for number, index in enumerate(order):
        prefix = dice.choice([0, 40])
        golden.append((index, engine.submit(prompts[index], greedy(CASES[index]), prefix_len=prefix)))
        others.append(engine.submit(prompts[dice.randrange(len(prompts))], sampled(number)))
        if number % 5 == 4:
            next(golden[-4][1], None)
            others.pop().cancel()
    for index, handle in golden:
        rows_of(handle)
        assert handle.rows.tolist() == CASES[index]["greedy_delayed_codes"], CASES[index]["name"]


def test_a_seed_gives_the_same_rows_alone_and_in_a_batch_of_eight(
    network: HiggsNetwork, prompts: list[list[Run]]
) -> None:
    with Engine(network, slots=1, max_len=1000) as engine:
        alone = [rows_of(engine.submit(runs, sampled(seed))) for seed, runs in enumerate(prompts)]
    with Engine(network, slots=8, max_len=1000) as engine:
        together = [engine.submit(runs, sampled(seed)) for seed, runs in enumerate(prompts)]
        assert [rows_of(handle) for handle in together] == alone
        again = [engine.submit(runs, sampled(seed)) for seed, runs in reversed(list(enumerate(prompts)))]
        assert [rows_of(handle) for handle in again] == alone[::-1]


def test_two_clones_at_once_do_not_mix(network: HiggsNetwork, prompts: list[list[Run]]) -> None:
    """Prefixes of two voices in flight at the same time, each kept for its own."""
    clones = [index for index, case in enumerate(CASES) if len(case["reference_codes"]) == 1]
    length = 60
    with Engine(network, slots=4, max_len=1000) as engine:
        for _ in range(2):
            handles = [engine.submit(prompts[i], greedy(CASES[i]), prefix_len=length) for i in clones]
            for index, handle in zip(clones, handles, strict=True):
                assert rows_of(handle) == CASES[index]["greedy_delayed_codes"]
        assert (engine.stats().prefix_hits, engine.stats().prefix_misses) == (len(clones), len(clones))
