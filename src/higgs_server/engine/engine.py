"""Continuous batching: one thread that admits, prefills, decodes and hands out frames.

Knows codec frames only: no text, no sound, no HTTP. Requests join and leave between steps. Any thread may submit,
cancel and read; only the engine's own thread touches the scheduler and the runner.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from higgs_server.engine.guard import REPEAT_LIMIT
from higgs_server.engine.handle import Handle
from higgs_server.engine.interface import EngineStats, FrameModel, Run
from higgs_server.engine.prefix_files import PrefixFiles
from higgs_server.engine.runner import Runner, Ticket
from higgs_server.engine.scheduler import Scheduler
from higgs_server.engine.sequence import CodeFormat, Sequence, positions_of
from higgs_server.telemetry import Tally
from higgs_server.types import Cancelled, GenerationFailed, InvalidRequest, NotReady, SamplingParams, kind_of

logger = logging.getLogger(__name__)


STEP_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12)
"""Buckets around 0.04: a frame is that much sound."""
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MAX_DEATHS = 6
"""An engine that has died so often without a row in between gives up."""
FIRST_PAUSE = 0.5
"""Seconds before an engine that died begins anew, doubled each time: 16 s of trying in all."""
WIDEN_AFTER = 1_000
"""Good steps after which one more utterance may run, where memory had run out."""


PREFILL_BUDGETS = {"cuda": 512, "mps": 64, "cpu": 64}
"""Prompt positions between two decode steps; on a CPU, where each takes its time, as few as go at full speed."""


class Engine:
    """Runs a FrameModel for many utterances at once.

    slots: utterances decoded at the same time. max_len: positions of context each has, prompt and answer together.
    prefill_budget: prompt positions worked off between two decode steps, None for what suits the device. prefix_bytes:
    memory for kept prefixes. prefix_folder: where they stay on disk, for this model alone.
    """

    def __init__(
        self,
        model: FrameModel,
        *,
        slots: int,
        max_len: int,
        prefill_budget: int | None = None,
        prefix_bytes: int = 512 * 2**20,
        prefix_folder: Path | None = None,
    ) -> None:
        self.max_len = min(max_len, model.max_positions)
        self.slots = slots
        self._model = model
        self._format = CodeFormat.of(model)
        self._prefill_budget = prefill_budget or PREFILL_BUDGETS[model.device.type]
        self._prefix_bytes = prefix_bytes
        self._prefix_files = PrefixFiles(prefix_folder) if prefix_folder else None
        self._begin()
        self._handles: dict[Sequence, Handle] = {}
        self._tickets: deque[Ticket] = deque()
        self._good_steps = 0
        self._rows = 0
        self._step_seconds, self._batches = Tally(STEP_SECONDS), Tally(BATCHES)

        self._wake = threading.Condition()
        self._submitted: deque[tuple[Sequence, Handle]] = deque()
        self._cancelled: deque[Sequence] = deque()
        self._closed = False
        self._trouble: NotReady | None = None
        self._publish()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(
        self,
        runs: Iterable[Run],
        sampling: SamplingParams,
        *,
        prefix_len: int = 0,
        frame_budget: int | None = None,
        repeat_limit: int | None = REPEAT_LIMIT,
    ) -> Handle:
        """Queues an utterance and returns at once.

        runs: the prompt, with row 0 (all stream-BOS) behind `<|audio_out_bos|>`. sampling: complete, seed and
        max_new_tokens included; the latter counts rows, row 0 among them. prefix_len: leading positions worth keeping
        for other utterances of the same voice. frame_budget, repeat_limit: the guard against endless speech, in
        frames, None switches either off.
        Raises InvalidRequest if prompt and answer do not fit the context, NotReady while the engine has died of a fault
        or once it is closed.
        """
        runs = tuple(runs)
        self.check_room(positions_of(runs), sampling)
        sequence = Sequence(
            runs,
            sampling,
            self._format,
            prefix_len=prefix_len,
            frame_budget=frame_budget,
            repeat_limit=repeat_limit,
        )
        handle = Handle(sequence, self._cancel)
        if sequence.finish_reason is not None:
            handle.end()
            return handle
        with self._wake:
            if self._closed:
                raise NotReady("The engine is shutting down.", "引擎正在关闭。")
            if self._trouble is not None:
                raise self._trouble.with_traceback(None)
            self._submitted.append((sequence, handle))
            self._wake.notify()
        return handle

    def check_room(self, prompt_len: int, sampling: SamplingParams) -> None:
        """Raises InvalidRequest, with numbers, if a prompt of so many positions (row 0 included) leaves no room.

        Row 0 is counted once: it is the first of the answer's rows.
        """
        prompt, answer = prompt_len - 1, sampling.max_new_tokens or 0
        room = self.max_len - prompt
        if answer <= room:
            return
        if room < 1:
            raise InvalidRequest(
                f"The prompt takes {prompt} positions, the context has {self.max_len}: shorten the text or the "
                "reference clip, or have the text cut with chunk_method.",
                f"提示词占 {prompt} 个位置，上下文只有 {self.max_len}：请缩短文本或参考音频，或用 chunk_method 切分。",
                param="text",
            )
        raise InvalidRequest(
            f"The prompt takes {prompt} positions and max_new_tokens is {answer}, the context has {self.max_len}: "
            f"ask for at most {room} tokens, or shorten the text or the reference clip.",
            f"提示词占 {prompt} 个位置，max_new_tokens 为 {answer}，而上下文只有 {self.max_len}："
            f"请将 max_new_tokens 降到 {room} 以内，或缩短文本或参考音频。",
            param="max_new_tokens",
        )

    def stats(self) -> EngineStats:
        """A snapshot as of the last step, from any thread."""
        with self._wake:
            return replace(self._stats, waiting=self._stats.waiting + len(self._submitted))

    @property
    def trouble(self) -> NotReady | None:
        """What keeps it from generating at present: it died and is not back yet, or gave up. None while all is well."""
        return self._trouble

    def close(self) -> None:
        """Ends everything with Cancelled, joins the thread and frees the cache. Idempotent."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        self._thread.join()
        if self._prefix_files is not None:
            self._prefix_files.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _cancel(self, sequence: Sequence) -> None:
        with self._wake:
            self._cancelled.append(sequence)
            self._wake.notify()

    # --- the engine's thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Lives until closed. An error that no request can be blamed for ends all of them, and the engine begins anew;
        one that dies again and again without a single row in between gives up."""
        deaths = rows = 0
        while (fault := self._live()) is not None:
            deaths = deaths + 1 if self._rows == rows else 1
            rows = self._rows
            pause = FIRST_PAUSE * 2 ** (deaths - 1)
            with self._wake:
                self._trouble = _trouble(fault, pause if deaths < MAX_DEATHS else None)
                self._end_all(GenerationFailed(fault))
                self._wake.wait_for(lambda: self._closed, pause if deaths < MAX_DEATHS else None)
        with self._wake:
            self._end_all(Cancelled())
        del self._model

    def _live(self) -> Exception | None:
        """Serves until it is closed, which returns None, or dies, which returns what it died of."""
        try:
            if self._trouble is not None and not self._closed:
                self._begin()
                self._trouble = None
                logger.warning("the engine is back")
            while self._take_orders():
                started = time.perf_counter()
                if batch := self._round():
                    self._step_seconds.add(time.perf_counter() - started)
                    self._batches.add(batch)
                self._publish()
        except Exception as error:
            logger.exception("the engine died")
            return error
        return None

    def _begin(self) -> None:
        """With an empty cache and nobody in it."""
        self._scheduler = Scheduler(self.slots, self._prefill_budget)
        self._runner = Runner(
            self._model,
            slots=self.slots,
            max_len=self.max_len,
            prefix_bytes=self._prefix_bytes,
            prefix_files=self._prefix_files,
        )

    def _end_all(self, failure: BaseException) -> None:
        """Ends what is under way or submitted, and frees the device's memory."""
        self._handles.update(self._submitted)
        self._submitted.clear()
        self._cancelled.clear()
        self._tickets.clear()
        for handle in self._handles.values():
            handle.end(failure)
        self._handles.clear()
        self._scheduler = Scheduler(self.slots, self._prefill_budget)
        self._runner.free()
        self._publish()

    def _take_orders(self) -> bool:
        """Blocks while there is nothing to do; takes in what was submitted and cancelled. False: close."""
        with self._wake:
            self._wake.wait_for(
                lambda: self._submitted or self._cancelled or self._closed or self._handles or self._tickets
            )
            submitted, self._submitted = self._submitted, deque()
            cancelled, self._cancelled = self._cancelled, deque()
            closed = self._closed
        for sequence, handle in submitted:
            self._handles[sequence] = handle
            self._scheduler.add(sequence)
        for sequence in cancelled:
            self._drop(sequence, Cancelled())
        return not closed

    def _round(self) -> int:
        """Admits, prefills within the budget, launches a decode step, and reads what has been drawn.

        Returns how many sequences the decode step had; 0 for none.
        """
        self._scheduler.admit()
        for piece in self._scheduler.pieces():
            if piece.sequence not in self._handles:  # an earlier piece of it failed
                continue
            try:
                ticket = self._runner.prefill(piece)
            except Exception as error:
                if self._runner.out_of_memory(error):
                    self._runner.spare_memory()
                self._fail([piece.sequence], error)
                continue
            if ticket is not None:
                self._tickets.append(ticket)
        drawing = self._scheduler.drawing()
        if drawing:
            try:
                self._tickets.append(self._runner.decode(drawing, self._scheduler.running))
                self._widen()
            except Exception as error:  # nothing says whose fault it is
                if self._runner.out_of_memory(error):
                    self._narrow(len(drawing))
                self._fail(drawing, error)
        # The last ticket may stay unread while the device works on it, as long as something follows it.
        lookahead = self._runner.lookahead if drawing else 0
        while len(self._tickets) > lookahead:
            self._read(self._tickets.popleft())
        return len(drawing)

    def _narrow(self, batch: int) -> None:
        """A step of so many found no memory: from here on half as many run at once, so that not all fail for ever."""
        self._runner.spare_memory()
        self._scheduler.limit = max(1, batch // 2)
        self._good_steps = 0
        logger.warning("out of memory: at most %d utterances run at once for now", self._scheduler.limit)

    def _widen(self) -> None:
        """Memory may be there again: after many good steps one more may run."""
        self._good_steps += 1
        if self._scheduler.limit < self.slots and self._good_steps >= WIDEN_AFTER:
            self._scheduler.limit += 1
            self._good_steps = 0

    def _read(self, ticket: Ticket) -> None:
        """Hands the rows of a ticket to their sequences."""
        try:
            rows = self._runner.read(ticket)
        except Exception as error:
            self._fail(ticket.sequences, error)
            return
        for sequence, row in rows:
            handle = self._handles.get(sequence)
            if handle is None:  # ended or cancelled since the launch
                continue
            self._rows += 1
            if row is None:
                self._fail([sequence], ArithmeticError("the model's output is not finite"))
                continue
            handle.deliver(sequence.append(row))
            if sequence.finish_reason is not None:
                self._drop(sequence)

    def _fail(self, sequences: Iterable[Sequence], cause: Exception) -> None:
        """Ends sequences with an error; the engine goes on, unless the device is lost to it."""
        if self._runner.lost(cause):
            raise cause
        logger.error("generation failed", exc_info=cause)
        for sequence in sequences:
            self._drop(sequence, GenerationFailed(cause), broken=True)

    def _drop(self, sequence: Sequence, failure: BaseException | None = None, *, broken: bool = False) -> None:
        """Takes a sequence out, however it ended, and frees its slot."""
        handle = self._handles.pop(sequence, None)
        if handle is None:
            return
        slot = self._scheduler.remove(sequence)
        try:
            if slot is not None:
                self._runner.release(sequence, slot, broken=broken)
        finally:
            handle.end(failure)

    def _publish(self) -> None:
        """Brings the statistics up to date."""
        stats = EngineStats(
            slots=self.slots,
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            rows=self._rows,
            step_seconds=self._step_seconds,
            batches=self._batches,
            prefix_hits=self._runner.prefixes.hits,
            prefix_misses=self._runner.prefixes.misses,
            prefixes=len(self._runner.prefixes),
            prefix_bytes=self._runner.prefixes.bytes,
        )
        with self._wake:
            self._stats = stats
            self._wake.notify_all()


def _trouble(fault: Exception, pause: float | None) -> NotReady:
    """`pause`: seconds until the engine begins anew, None if it gave up."""
    kind, zh = kind_of(fault)
    if pause is None:
        return NotReady(
            f"The engine died again and again ({kind}) and gave up: restart the server.",
            f"引擎多次失败（{zh}），已停止重试：请重启服务。",
        )
    return NotReady(
        f"The engine died ({kind}) and is starting again.",
        f"引擎出错（{zh}），正在重新启动。",
        retry_after=math.ceil(pause),
    )
