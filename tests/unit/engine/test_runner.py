"""Prefill pieces, decode batches, slots and prefixes on the device, driven by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fake_model import FakeModel, prompt
from higgs_server.engine.interface import AudioRun, FrameModel, TextRun
from higgs_server.engine.runner import Runner
from higgs_server.engine.scheduler import Piece
from higgs_server.engine.sequence import Sequence
from higgs_server.types import SamplingParams
from scripted_model import ScriptedModel

pytestmark = pytest.mark.usefixtures("one_thread")


def new(model: FrameModel, slots: int = 4, prefix_bytes: int = 1 << 20) -> Runner:
    return Runner(model, slots=slots, max_len=600, prefix_bytes=prefix_bytes)


def sequence(runner: Runner, *tokens: int, rows: int = 30, seed: int = 1, prefix_len: int = 0) -> Sequence:
    sampling = SamplingParams(seed=seed, max_new_tokens=rows)
    return Sequence(prompt(*tokens, audio=5), sampling, runner.format, prefix_len=prefix_len)


def begin(seq: Sequence, slot: int) -> Sequence:
    seq.slot = slot
    return seq


def prefill(runner: Runner, seq: Sequence, piece: int = 1000) -> None:
    while seq.prefilling:
        ticket = runner.prefill(Piece(seq, seq.prefilled, seq.next_cut(seq.prefilled, piece)))
    assert ticket is not None
    take(runner, ticket)


def take(runner: Runner, ticket: object) -> None:
    for seq, row in runner.read(ticket):  # type: ignore[arg-type]
        assert row is not None
        if seq.finish_reason is None:
            seq.append(row)


def finish(runner: Runner, *sequences: Sequence) -> list[list[list[int]]]:
    while drawing := [seq for seq in sequences if seq.drawing]:
        take(runner, runner.decode(drawing, sequences))
    return [seq.rows.tolist() for seq in sequences]


def alone(*tokens: int, **options: int) -> list[list[int]]:
    runner = new(FakeModel())
    seq = begin(sequence(runner, *tokens, **options), 0)
    prefill(runner, seq)
    return finish(runner, seq)[0]


def test_a_prompt_in_pieces_gives_the_same_rows_as_in_one() -> None:
    expected = alone(1, 2, 3, 4)
    for piece in (1, 2, 3, 7):
        runner = new(FakeModel())
        seq = begin(sequence(runner, 1, 2, 3, 4), 0)
        prefill(runner, seq, piece)
        assert finish(runner, seq) == [expected]


@pytest.mark.parametrize("text_rows", [0, 3, 100])
def test_text_that_is_read_at_once_gives_the_same_rows(text_rows: int) -> None:
    """Whether a piece is text, too long for that, or no text at all; the first row is then drawn by a decode step."""
    begin_row = AudioRun(np.full((1, 8), FakeModel.stream_bos_id))
    clip = AudioRun(np.random.default_rng(0).integers(0, 30, (3, 8)))
    prompts = [
        [TextRun(np.array([1, 2, 3, 4, 5])), begin_row],
        [TextRun(np.array([1, 2])), TextRun(np.array([3])), begin_row],
        [TextRun(np.array([1, 2])), clip, TextRun(np.array([3])), begin_row],
        [begin_row],
    ]
    for runs in prompts:
        rows = []
        for model, piece in ((FakeModel(), 1000), *((FakeModel(text_rows=text_rows), piece) for piece in (1, 2, 1000))):
            runner = new(model)
            seq = Sequence(runs, SamplingParams(seed=1, max_new_tokens=12), runner.format)
            begin(seq, 2)
            while seq.prefilling:
                if ticket := runner.prefill(Piece(seq, seq.prefilled, seq.next_cut(seq.prefilled, piece))):
                    take(runner, ticket)
            rows.append(finish(runner, seq))
        assert rows == [rows[0]] * len(rows)


@pytest.mark.parametrize(("tokens", "read"), [(1, 32), (32, 32), (33, 64), (70, 70)])
def test_text_is_read_in_few_sizes(tokens: int, read: int, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = new(FakeModel(text_rows=70))
    sizes: list[int] = []
    monkeypatch.setattr(runner, "read_text", lambda rows: (sizes.append(rows), runner._read_text(rows))[1])
    runs = [TextRun(np.arange(tokens)), AudioRun(np.full((1, 8), FakeModel.stream_bos_id))]
    seq = begin(Sequence(runs, SamplingParams(seed=1, max_new_tokens=3), runner.format), 0)
    assert runner.prefill(Piece(seq, 0, tokens + 1)) is None
    assert sizes == [read]


def test_numbers_beyond_all_bounds_mean_the_same_as_the_bounds() -> None:
    rows = []
    for top_k, window, repeats in ((None, None, 1025), (10**30, -(10**30), 1025), (None, 1024, 10**30)):
        runner = new(FakeModel())
        sampling = SamplingParams(
            seed=1, max_new_tokens=20, top_k=top_k, ras_win_len=window, ras_win_max_num_repeat=repeats
        )
        seq = begin(Sequence(prompt(1, 2, 3), sampling, runner.format), 0)
        prefill(runner, seq)
        rows.append(finish(runner, seq))
    assert rows == [rows[0]] * 3


def test_decode_steps_between_the_pieces_of_a_neighbours_prompt_do_it_no_harm() -> None:
    """Every step runs slots 0 and 2 too: what it writes for them must be overwritten by what comes."""
    runner = new(FakeModel())
    early = begin(sequence(runner, 1, 2), 1)
    prefill(runner, early)
    late = begin(sequence(runner, 5, 6, 7, seed=3), 0)
    later = begin(sequence(runner, 5, 6, 8, seed=4), 2)
    for seq in (late, later):
        while seq.prefilling:
            ticket = runner.prefill(Piece(seq, seq.prefilled, seq.prefilled + 1))
            if ticket is not None:
                take(runner, ticket)
            everyone = [early, late, later]
            take(runner, runner.decode([each for each in everyone if each.drawing], everyone))
    rows = finish(runner, late, early, later)
    assert rows == [alone(5, 6, 7, seed=3), alone(1, 2), alone(5, 6, 8, seed=4)]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("slot", range(5))
def test_any_slot_and_any_bucket_gives_the_same_rows(slot: int, padded: bool) -> None:
    model = ScriptedModel(FakeModel())
    runner = new(model, slots=5)
    runner.padded = padded
    seq = begin(sequence(runner, 1, 2, 3), slot)
    prefill(runner, seq)
    assert finish(runner, seq) == [alone(1, 2, 3)]
    assert set(model.decoded) == {[1, 2, 4, 4, 5][slot] if padded else slot + 1}


def test_a_prefix_is_copied_to_the_next_of_the_same_voice_and_changes_nothing() -> None:
    model = ScriptedModel(FakeModel())
    runner = new(model)
    first = begin(sequence(runner, 1, 2, 3, prefix_len=6), 0)
    prefill(runner, first)
    model.prefilled.clear()
    same_voice = begin(sequence(runner, 1, 2, 3, seed=8, prefix_len=6), 1)
    other_voice = begin(sequence(runner, 1, 2, 4, seed=8, prefix_len=6), 2)
    prefill(runner, same_voice)
    prefill(runner, other_voice)
    assert model.prefilled == [(1, 6, 10), (2, 0, 6), (2, 6, 10)]
    assert (runner.prefixes.hits, runner.prefixes.misses) == (1, 2)
    rows = finish(runner, first, same_voice, other_voice)
    assert rows == [alone(1, 2, 3), alone(1, 2, 3, seed=8), alone(1, 2, 4, seed=8)]


def test_decode_steps_behind_a_copied_prefix_do_it_no_harm() -> None:
    runner = new(FakeModel())
    early = begin(sequence(runner, 1, 2, 3, prefix_len=6), 1)
    prefill(runner, early)
    late = begin(sequence(runner, 1, 2, 3, seed=8, prefix_len=6), 0)
    assert runner.prefill(Piece(late, 0, 6)) is None
    take(runner, runner.decode([early], [early, late]))
    prefill(runner, late)
    assert finish(runner, early, late) == [alone(1, 2, 3), alone(1, 2, 3, seed=8)]


def test_a_prefix_that_cannot_be_kept_is_not_counted() -> None:
    runner = new(FakeModel(), prefix_bytes=0)
    for slot in (0, 1):
        seq = begin(sequence(runner, 1, 2, 3, prefix_len=6), slot)
        prefill(runner, seq)
        assert finish(runner, seq) == [alone(1, 2, 3)]
        runner.release(seq, slot)
    assert (runner.prefixes.hits, runner.prefixes.misses, len(runner.prefixes)) == (0, 0, 0)


def test_numbers_that_are_not_finite_end_their_own_sequence_and_leave_nothing_behind() -> None:
    model = ScriptedModel(FakeModel())
    runner = new(model)
    model.breaks[66] = 15
    broken = begin(sequence(runner, 66, 2, 3), 0)
    healthy = begin(sequence(runner, 1, 2, 3), 1)
    prefill(runner, broken)
    prefill(runner, healthy)
    while True:
        rows = dict(runner.read(runner.decode([broken, healthy], [broken, healthy])))
        healthy.append(rows[healthy])  # type: ignore[arg-type]
        if rows[broken] is None:
            break
    runner.release(broken, 0, broken=True)
    next_tenant = begin(sequence(runner, 9, 2, 3), 0)
    prefill(runner, next_tenant)
    assert finish(runner, next_tenant, healthy) == [alone(9, 2, 3), alone(1, 2, 3)]


def test_a_slot_can_be_given_away_while_a_step_that_used_it_is_unread() -> None:
    """As on a GPU: the next step is launched before the last one's rows are looked at."""
    runner = new(FakeModel())
    first, stays = (begin(sequence(runner, 1, 2, slot), slot) for slot in (0, 1))
    prefill(runner, first)
    prefill(runner, stays)
    unread = runner.decode([first, stays], [first, stays])
    runner.release(first, 0)
    second = begin(sequence(runner, 4, 5, 6), 0)
    prefill(runner, second)
    take(runner, unread)
    assert finish(runner, second, stays) == [alone(4, 5, 6), alone(1, 2, 1)]


@pytest.mark.parametrize(
    ("error", "out_of_memory", "lost"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True, False),
        (RuntimeError("CUDA error: out of memory"), True, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True, False),
        (RuntimeError("Failed to allocate memory for requested buffer of size 4096"), True, False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"), False, True),
        (ValueError("nothing of the kind"), False, False),
    ],
    ids=range(7),
)
def test_running_out_of_memory_is_no_loss_of_the_device(error: Exception, out_of_memory: bool, lost: bool) -> None:
    assert (Runner.out_of_memory(error), Runner.lost(error)) == (out_of_memory, lost)


def test_the_last_row_of_a_full_context_stays_inside_its_slot() -> None:
    """Prompt and answer fill the slot to its end; the neighbour keeps drawing beyond."""
    model = ScriptedModel(FakeModel())
    runner = Runner(model, slots=2, max_len=40, prefix_bytes=0)
    full = begin(sequence(runner, 1, 2, rows=32), 0)
    short = begin(sequence(runner, 1, rows=33), 1)
    prefill(runner, full)
    prefill(runner, short)
    rows = finish(runner, full, short)
    assert rows == [alone(1, 2, rows=32), alone(1, rows=33)]
    assert [len(each) for each in rows] == [32, 33]


def test_nothing_but_reading_asks_the_device_for_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sampler and the state run in captured graphs: `draw` and `start` must not look at a tensor's value."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a tensor's value was asked for")

    from higgs_server.engine import sampler

    runner = new(FakeModel())
    state = sampler.SamplerState.new(3, runner.format, torch.device("cpu"))
    logits = torch.randn(3, 8, 32)
    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "cpu", "numpy", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, forbidden)
    state.start(1, SamplingParams(seed=3), 100, 5, 32)
    drawn = sampler.draw(state.view(0, 2), logits[:2], runner.format, 32)
    monkeypatch.undo()
    assert drawn.shape == (2, 9)
    assert np.array_equal(state.row.numpy(), [0, 2, 0])
