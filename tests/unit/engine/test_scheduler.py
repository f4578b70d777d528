"""Admission, batches, pieces: what a random life of requests must never break."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fake_model import prompt
from higgs_server.engine.scheduler import Scheduler, bucket, buckets
from higgs_server.engine.sequence import CodeFormat, Sequence
from higgs_server.types import SamplingParams

FORMAT = CodeFormat(codebooks=8, bos=30, eos=31)


def sequence(length: int = 3, prefix_len: int = 0, rows: int = 20) -> Sequence:
    return Sequence(prompt(*range(length)), SamplingParams(seed=1, max_new_tokens=rows), FORMAT, prefix_len=prefix_len)


def test_slots_are_given_in_order_of_arrival_lowest_first() -> None:
    scheduler = Scheduler(slots=3, prefill_budget=100)
    first, second, third, fourth, fifth = (sequence() for _ in range(5))
    for seq in (first, second, third, fourth, fifth):
        scheduler.add(seq)
    assert scheduler.admit() == [first, second, third]
    assert [seq.slot for seq in (first, second, third, fourth)] == [0, 1, 2, None]
    assert scheduler.remove(second) == 1
    assert scheduler.remove(first) == 0
    assert scheduler.admit() == [fourth, fifth]
    assert (fourth.slot, fifth.slot) == (0, 1)
    assert scheduler.running == (third, fourth, fifth)


def test_a_waiting_sequence_can_be_removed() -> None:
    scheduler = Scheduler(slots=1, prefill_budget=100)
    running, waiting = sequence(), sequence()
    scheduler.add(running)
    scheduler.add(waiting)
    scheduler.admit()
    assert scheduler.remove(waiting) is None
    assert scheduler.waiting == ()


def test_a_long_prompt_takes_several_steps_and_short_ones_share_one() -> None:
    scheduler = Scheduler(slots=4, prefill_budget=10)
    long, short, shorter = sequence(length=24, prefix_len=7), sequence(length=4), sequence(length=3)
    for seq in (long, short, shorter):
        scheduler.add(seq)
    scheduler.admit()
    steps = []
    while pieces := scheduler.pieces():
        steps.append([(piece.sequence, piece.start, piece.stop) for piece in pieces])
        for piece in pieces:
            piece.sequence.prefilled = piece.stop
    assert steps == [
        [(long, 0, 7)],
        [(long, 7, 17)],
        [(long, 17, 25)],
        [(short, 0, 5), (shorter, 0, 4)],
    ]


def test_buckets() -> None:
    assert [bucket(n, 1, 12) for n in (1, 2, 3, 4, 5, 8, 9, 12)] == [1, 2, 4, 4, 8, 8, 12, 12]
    assert [bucket(n, 256, 2000) for n in (1, 256, 257, 1500)] == [256, 256, 512, 2000]
    assert buckets(1, 12) == [1, 2, 4, 8, 12]
    assert buckets(256, 2000) == [256, 512, 1024, 2000]
    assert [buckets(256, most) for most in (0, 100, 256)] == [[], [100], [256]]


@settings(derandomize=True, deadline=None, max_examples=80)
@given(
    slots=st.integers(1, 5),
    budget=st.integers(1, 40),
    life=st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(1, 60)),
            st.tuples(st.just("abort"), st.integers(0, 50)),
            st.tuples(st.just("step"), st.just(0)),
        ),
        max_size=60,
    ),
)
def test_a_random_life(slots: int, budget: int, life: list[tuple[str, int]]) -> None:
    scheduler = Scheduler(slots, budget)
    alive: list[Sequence] = []
    order: list[Sequence] = []

    def step() -> None:
        free_before = sorted(set(range(slots)) - {seq.slot for seq in scheduler.running})
        waiting_before = scheduler.waiting
        admitted = scheduler.admit()
        order.extend(admitted)
        assert [seq.slot for seq in admitted] == free_before[: len(admitted)]
        assert tuple(admitted) == waiting_before[: len(admitted)]
        assert not scheduler.waiting or len(scheduler.running) == slots
        pieces = scheduler.pieces()
        assert sum(piece.stop - piece.start for piece in pieces) <= budget
        assert bool(pieces) == any(seq.prefilling for seq in scheduler.running)
        for piece in pieces:
            assert piece.start == piece.sequence.prefilled < piece.stop <= piece.sequence.prompt_len
            piece.sequence.prefilled = piece.stop
            piece.sequence.drawn += piece.completes_prompt
        drawing = scheduler.drawing()
        assert all(not seq.prefilling and seq.drawn < seq.row_limit for seq in drawing)
        for seq in drawing:
            seq.drawn += 1
        for seq in scheduler.running:
            if seq.drawn == seq.row_limit:
                assert scheduler.remove(seq) is not None
                alive.remove(seq)
        occupied = [seq.slot for seq in scheduler.running]
        assert len(set(occupied)) == len(occupied)

    for act, number in life:
        if act == "add":
            seq = sequence(length=number, prefix_len=number // 2, rows=2 + number % 7)
            alive.append(seq)
            scheduler.add(seq)
        elif act == "abort" and alive:
            seq = alive.pop(number % len(alive))
            assert (seq.slot is None) == (scheduler.remove(seq) is None)
        elif act == "step":
            step()
    for _ in range(5000):
        if not alive:
            break
        step()
    assert not alive  # everybody is served in the end
    assert scheduler.running == scheduler.waiting == ()
