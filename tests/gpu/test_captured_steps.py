"""Captured decode steps against steps as they are: the same rows for everybody, whoever comes and goes.

Without an NVIDIA GPU the same tests run over `recorded_graph.py`, which captures on a CPU as CUDA would.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from devices import DEVICES, NO_GPU
from higgs_server.backends.higgs_v2.checkpoint import load_network
from higgs_server.backends.higgs_v2.config import HiggsConfig
from higgs_server.backends.higgs_v2.network import HiggsNetwork
from higgs_server.backends.higgs_v2.tokenizer import HiggsTokenizer
from higgs_server.engine.engine import Engine
from higgs_server.engine.graphs import CapturedSteps
from higgs_server.engine.interface import AudioRun, TextRun
from higgs_server.engine.runner import Runner, Ticket
from higgs_server.engine.sampler import NEAR, SamplerState, draw
from higgs_server.engine.scheduler import Scheduler, bucket
from higgs_server.engine.sequence import Sequence
from higgs_server.types import SamplingParams
from recorded_graph import HostAsked, RecordedCapture, Recording

pytestmark = pytest.mark.usefixtures("one_thread")

GOLDEN = Path(__file__).parents[1] / "golden"
CHECKPOINT = GOLDEN / "higgs-v2-tiny-original"
CASES: list[dict[str, Any]] = json.loads((GOLDEN / "greedy_codes.json").read_text("utf-8"))["cases"]
SLOTS, MAX_LEN, CODES = 6, 600, 1026
BATCHES, LENGTHS, REACHES = (1, 2, 4, 6), (256, 512, 600), (0, NEAR, CODES)


# What captures on a CPU sees PyTorch's operations and no others, so kernels take part on a GPU alone.
FUSED = pytest.param("cuda, fused", marks=[pytest.mark.gpu, NO_GPU])


@pytest.fixture(scope="module", params=[*DEVICES, FUSED])
def network(request: pytest.FixtureRequest) -> HiggsNetwork:
    device, *fused = request.param.split(", ")
    network = load_network(CHECKPOINT, torch.device(device), torch.float32)
    network.row_by_row = False
    if fused:
        from higgs_server.backends.higgs_v2.fused import FusedSteps

        network.fused = FusedSteps(network)
    return network


def as_on_cuda(runner: Runner) -> Runner:
    """Steps are captured, padded to buckets, and read one behind: on a CPU too."""
    runner.padded, runner.lookahead = True, 1
    if not isinstance(runner.step, CapturedSteps):
        runner.step = CapturedSteps(runner._step, RecordedCapture())
    return runner


def shapes_of(runner: Runner) -> set[tuple[int, ...]]:
    assert isinstance(runner.step, CapturedSteps)
    assert runner.step._capture is not None, "a capture failed"
    return set(runner.step._graphs)


# --- no step needs the host -----------------------------------------------------------------------------------------


def step_on_the_device_alone(batch: int, reach: int) -> None:
    """On tensors of which nothing is known but shape and device. Raises where more of them is asked for."""
    network = HiggsNetwork(HiggsConfig.from_folder(CHECKPOINT), torch.device("meta"), torch.bfloat16)
    with torch.inference_mode():
        runner = Runner(network, slots=64, max_len=300, prefix_bytes=0)
        with Recording("meta"):
            assert runner._step(batch, 256, reach).shape == (batch, 9)


@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_a_step_needs_no_value_and_no_memory_of_the_host(batch: int, reach: int) -> None:
    step_on_the_device_alone(batch, reach)


@pytest.mark.parametrize(
    "look",
    [
        lambda state: state.row.max().item(),
        lambda state: state.codes.tolist(),
        lambda state: state.row.any() and None,
        lambda state: state.codes[state.active],
        lambda state: state.temperature * torch.tensor([1.0]),
        lambda state: state.codes.cpu(),
    ],
    ids=["item", "tolist", "bool", "mask", "constant", "copy"],
)
def test_a_step_that_looks_at_a_tensor_is_found_out(look: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def looking(state: SamplerState, *arguments: Any) -> torch.Tensor:
        look(state)
        return draw(state, *arguments)

    monkeypatch.setattr("higgs_server.engine.runner.draw", looking)
    with pytest.raises((HostAsked, RuntimeError, NotImplementedError)):
        step_on_the_device_alone(2, 0)


# --- captured and padded steps give the rows of plain ones ----------------------------------------------------------


def perform(runner: Runner, seed: int) -> list[list[list[int]]]:
    """Utterances of all kinds, of which some leave early, in the order that `seed` gives; the rows of each."""
    dice, numbers = random.Random(seed), np.random.default_rng(seed)
    scheduler = Scheduler(SLOTS, prefill_budget=200)
    sequences: list[Sequence] = []
    tickets: list[Ticket] = []

    def join() -> None:
        text = TextRun(numbers.integers(0, 256, dice.choice([3, 20, 230])))
        clip = AudioRun(numbers.integers(0, 1026, (dice.choice([0, 9, 240]), 8)))
        begin = AudioRun(np.full((1, 8), 1024))
        greedy = {"temperature": 0.0, "ras_win_len": 0}
        kind = dice.choice([greedy, greedy, {"top_k": 50, "ras_win_len": 7}, {"top_k": None, "temperature": 1.5}])
        sampling = SamplingParams(seed=dice.randrange(1000), max_new_tokens=dice.randrange(10, 60), **kind)
        sequences.append(Sequence([text, clip, begin], sampling, runner.format, prefix_len=dice.choice([0, 2])))
        scheduler.add(sequences[-1])

    def leave(sequence: Sequence) -> None:
        if (slot := scheduler.remove(sequence)) is not None:
            runner.release(sequence, slot)

    for round_ in range(220):
        wanted = dice.choice([1, 1, 2, 4, 6]) if round_ % 20 == 0 else 0
        for _ in range(wanted):
            join()
        if scheduler.running and dice.random() < 0.01:
            leave(dice.choice(scheduler.running))
        scheduler.admit()
        tickets += [ticket for piece in scheduler.pieces() if (ticket := runner.prefill(piece))]
        if drawing := scheduler.drawing():
            tickets.append(runner.decode(drawing, scheduler.running))
        while len(tickets) > (runner.lookahead if drawing else 0):
            for sequence, row in runner.read(tickets.pop(0)):
                if sequence.slot is not None:
                    assert row is not None
                    sequence.append(row)
                    if sequence.finish_reason is not None:
                        leave(sequence)
    return [sequence.rows.tolist() for sequence in sequences]


def test_captured_steps_give_the_rows_of_plain_ones(network: HiggsNetwork) -> None:
    """Every batch, length and reach, padding rows, prompts half read, and utterances that come and go."""
    captured, plain = (Runner(network, slots=SLOTS, max_len=MAX_LEN, prefix_bytes=1 << 20) for _ in range(2))
    as_on_cuda(captured)
    plain.padded, plain.lookahead, plain.step = True, 1, plain._step
    assert perform(captured, seed=2) == perform(plain, seed=2)
    shapes = shapes_of(captured)
    reaches = set(REACHES) if captured._draw is draw else {0}
    assert [{shape[i] for shape in shapes} for i in range(3)] == [set(BATCHES), set(LENGTHS), reaches]


def test_what_is_captured_at_the_start_is_all_that_default_parameters_need(network: HiggsNetwork) -> None:
    captured, plain = (Runner(network, slots=SLOTS, max_len=MAX_LEN, prefix_bytes=1 << 20) for _ in range(2))
    as_on_cuda(captured).capture()
    plain.padded, plain.lookahead, plain.step = True, 1, plain._step
    at_the_start = shapes_of(captured)
    assert perform(captured, seed=3) == perform(plain, seed=3)
    reach = captured._reach([SamplingParams()])
    assert {shape for shape in shapes_of(captured) if shape[2] == reach} == at_the_start
    assert len(at_the_start) == len(BATCHES) * len(LENGTHS)


def test_every_request_among_many_gets_its_golden_rows(network: HiggsNetwork) -> None:
    on_cuda = network.device.type == "cuda"
    slots, requests = (64, 1000) if on_cuda else (5, 2 * len(CASES))
    tokenizer = HiggsTokenizer(CHECKPOINT, network.config)
    with Engine(network, slots=slots, max_len=1000) as engine:
        as_on_cuda(engine._runner)
        handles = []
        for number in range(requests):
            case = CASES[number % len(CASES)]
            sampling = SamplingParams(temperature=0.0, ras_win_len=0, seed=0, max_new_tokens=case["max_new_tokens"])
            runs = tokenizer.runs(case["prompt"], [np.array(clip) for clip in case["reference_codes"]])
            handles.append((case, engine.submit(runs, sampling, prefix_len=random.Random(number).choice([0, 40]))))
        for case, handle in handles:
            for _ in handle:
                pass
            assert handle.rows.tolist() == case["greedy_delayed_codes"], case["name"]
        assert shapes_of(engine._runner)


@pytest.mark.parametrize("batch", [1, 2, 3, 6, 13])
def test_padding_changes_no_logits(network: HiggsNetwork, batch: int) -> None:
    """A row alone, over no more than its own past, against the same row among padding rows in a longer bucket."""
    generator = torch.Generator().manual_seed(batch)
    slots = bucket(batch, 1, 13)
    cache = network.new_kv_cache(slots, MAX_LEN)
    cache.copy_(torch.randn(cache.shape, generator=generator))
    rows = torch.randint(0, CODES, (slots, 8), generator=generator).to(network.device)
    places = torch.randint(0, 300, (batch,), generator=generator).tolist()
    positions = torch.tensor(places + [0] * (slots - batch), device=network.device)
    padded = cache.clone()
    together = network.decode(padded, rows, positions, 512)
    for slot, place in enumerate(places):
        own = slice(slot, slot + 1)
        lone = cache[:, :, own].clone()
        alone = network.decode(lone, rows[own], positions[own], place + 1)[0]
        assert (together[slot] - alone).abs().max() < 1e-4 * alone.std()
        assert torch.allclose(padded[:, :, own], lone, atol=1e-4)
    free = [slot for slot in range(slots) if slot >= batch]
    assert torch.equal(padded[:, :, free, :, 1:], cache[:, :, free, :, 1:]), "a free slot is written at 0 alone"
