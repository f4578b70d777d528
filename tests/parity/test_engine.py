"""The engine on the real network: the golden rows in mixed, ragged batches, and seeds that do not feel the company."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from higgs_server.backends.higgs_v2.network import HiggsNetwork
from higgs_server.backends.higgs_v2.tokenizer import HiggsTokenizer
from higgs_server.engine.engine import Engine
from higgs_server.engine.handle import Handle
from higgs_server.engine.interface import Run
from higgs_server.engine.sampler import SamplerState, _keep_likely, draw, reach_of
from higgs_server.engine.sequence import CodeFormat
from higgs_server.synthesizer import Synthesizer
from higgs_server.types import InvalidRequest, SamplingParams
from networks import RUNNERS, network_of
from reference_loop import greedy_rows

pytestmark = pytest.mark.usefixtures("one_thread")

GOLDEN = Path(__file__).parents[1] / "golden"
CHECKPOINT = GOLDEN / "higgs-v2-tiny-original"
CASES: list[dict[str, Any]] = json.loads((GOLDEN / "greedy_codes.json").read_text("utf-8"))["cases"]


EXACT = pytest.mark.parametrize("network", ["torch", "onnx"], indirect=True)
QUANTISED = pytest.mark.parametrize("network", ["onnx-int8", "onnx-int4"], indirect=True)
"""Golden rows are the checkpoint's own weights'."""


@pytest.fixture(scope="module", params=RUNNERS)
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HiggsNetwork:
    return network_of(CHECKPOINT, request.param, tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def prompts(network: HiggsNetwork) -> list[list[Run]]:
    tokenizer = HiggsTokenizer(CHECKPOINT, network.config)
    return [tokenizer.runs(case["prompt"], [np.array(clip) for clip in case["reference_codes"]]) for case in CASES]


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


@EXACT
@pytest.mark.parametrize("index", range(len(CASES)), ids=[case["name"] for case in CASES])
def test_golden_rows_alone(network: HiggsNetwork, prompts: list[list[Run]], index: int) -> None:
    expected = CASES[index]["greedy_delayed_codes"]
    with Engine(network, slots=1, max_len=1000) as engine:
        handle = engine.submit(prompts[index], greedy(CASES[index]))
        assert rows_of(handle) == expected
        assert handle.finish_reason == ("stop" if expected[-1] == [1025] * 8 else "length")


@QUANTISED
def test_rows_of_the_plainest_loop_alone(network: HiggsNetwork, prompts: list[list[Run]]) -> None:
    with Engine(network, slots=1, max_len=1000, prefill_budget=1000) as engine:
        for case, runs in zip(CASES, prompts, strict=True):
            expected = greedy_rows(network, runs, case["max_new_tokens"]).tolist()
            assert rows_of(engine.submit(runs, greedy(case))) == expected, case["name"]


@EXACT
@pytest.mark.parametrize(("slots", "budget", "behind"), [(3, 64, False), (8, 1000, True)])
def test_golden_rows_among_sampled_ones_that_come_and_go(
    network: HiggsNetwork, prompts: list[list[Run]], slots: int, budget: int, behind: bool
) -> None:
    """All cases in any order, between requests with other parameters, some of which are cancelled.

    `behind`: as on a GPU, rows are read a step late and batches are padded to buckets.
    """
    with Engine(network, slots=slots, max_len=1000, prefill_budget=budget) as engine:
        engine._runner.lookahead = int(behind)
        engine._runner.padded = behind
        mixed_batch(engine, prompts)


def mixed_batch(engine: Engine, prompts: list[list[Run]]) -> None:
    dice = random.Random(engine.slots)
    order = [*range(len(CASES)), *range(len(CASES))][:12]
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


@EXACT
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


# --- the sampler against transformers' own processors ---------------------------------------------------------------


@pytest.mark.parametrize("row", [1, 2, 5, 8, 9, 20])
@pytest.mark.parametrize("codebook", [0, 1, 4, 7])
def test_delay_and_end_follow_transformers_processor(row: int, codebook: int) -> None:
    """Greedy rows from random logits, an end code put into one codebook at one row: early, in the delay, and late."""
    from transformers.models.higgs_audio_v2.generation_higgs_audio_v2 import HiggsAudioV2DelayPatternLogitsProcessor

    bos_token, delay_token, audio_token, form = 1, 2, 3, CodeFormat(8, 1024, 1025)
    processor = HiggsAudioV2DelayPatternLogitsProcessor(
        list(range(1, 9)), bos_token, delay_token, form.bos, form.eos, form.codebooks, 1026
    )
    state = SamplerState.new(1, form, torch.device("cpu"))
    state.start(0, SamplingParams(temperature=0.0, ras_win_len=0, seed=0), 60, 0, 1026)
    ids = [0] * 10 + [bos_token]
    generator = torch.Generator().manual_seed(row * 8 + codebook)
    for number in range(60):
        logits = torch.randn((1, 8, 1026), generator=generator)
        logits[:, :, form.eos] -= 9
        if number == row:
            logits[:, codebook, form.eos] += 99
        theirs = processor(torch.tensor([ids]), logits.view(1, -1)).argmax(-1)
        if number > 0:  # row 0 stands in the prompt here
            assert draw(state, logits, form, 0)[0, :8].tolist() == theirs.tolist()
        ending = bool((theirs == form.eos).any()) or ids[-1] == delay_token
        ids.append(delay_token if ending else audio_token)
        if bool((theirs == form.eos).all()):
            break
    # A codebook that still waits for its first row is not free to end.
    assert number == (59 if row <= codebook else row + 8)
    assert not state.active[0]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.8])
@pytest.mark.parametrize(("top_k", "top_p"), [(50, 0.95), (5, 1.0), (None, 0.8), (None, 0.999), (1, 0.1), (200, 0.5)])
def test_the_same_codes_stay_in_play_as_with_transformers_warpers(
    temperature: float, top_k: int | None, top_p: float
) -> None:
    from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn((16, 8, 1026), generator=torch.Generator().manual_seed(1)) * 3
    theirs = TemperatureLogitsWarper(temperature)(None, logits.view(-1, 1026))
    if top_k:
        theirs = TopKLogitsWarper(top_k)(None, theirs)
    if top_p < 1:
        theirs = TopPLogitsWarper(top_p)(None, theirs)
    sampling = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    k, p = torch.full((16,), top_k or 1026), torch.full((16,), top_p)
    ours = _keep_likely(logits / temperature, k, p, reach_of(sampling, 1026))
    differing = (ours.view(-1, 1026).isfinite() != theirs.isfinite()).sum(-1)
    # The two add probabilities up from opposite ends: one that lies on the very border may fall to either side.
    assert differing.max() <= 1
    assert differing.sum() <= 2


def test_generate_codes_takes_its_arguments_in_the_documented_order() -> None:
    case = next(case for case in CASES if case["name"] == "clone")
    speech = Synthesizer.from_pretrained(CHECKPOINT, device="cpu", dtype="float32")
    try:
        prompt, clips, most = case["prompt"], case["reference_codes"], case["max_new_tokens"]
        rows = speech.generate_codes(prompt, clips, np.int64(most), 0.0, 0, None)
        np.testing.assert_array_equal(rows, case["greedy_delayed_codes"])
        drawn = [speech.generate_codes(prompt, clips, most, 1.5, 7, seed=seed) for seed in (3, 3, 4)]
        np.testing.assert_array_equal(drawn[0], drawn[1])
        assert drawn[0].shape != drawn[2].shape or (drawn[0] != drawn[2]).any()
        for wrong in ({"temperature": 3.0}, {"max_new_tokens": 0}, {"seed": -1}):
            with pytest.raises(InvalidRequest, match=next(iter(wrong))):
                speech.generate_codes(prompt, clips, **wrong)
        with pytest.raises(InvalidRequest, match="Reference codes"):
            speech.generate_codes(prompt, [np.full((4, 8), 0.5)], most)
    finally:
        speech.close()
