"""The sole host-device crossing: runs prefill pieces and decode steps on the model, and brings rows back.

Knows no queues and no fairness: the engine says what to run. Nothing here waits for the device but `read`. What is
launched is done in the order of the calls, so slots may be released while a step that used them is under way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Several
from dataclasses import dataclass
from functools import partial

import torch

from higgs_server.engine.graphs import CapturedSteps, CudaCapture
from higgs_server.engine.interface import FrameModel, TextRun
from higgs_server.engine.kv_cache import KVCache, PrefixCache, prefix_key
from higgs_server.engine.prefix_files import PrefixFiles
from higgs_server.engine.sampler import SamplerState, draw, reach_of
from higgs_server.engine.scheduler import Piece, bucket, buckets
from higgs_server.engine.sequence import CodeFormat, Sequence, slice_runs
from higgs_server.engine.trial import tried
from higgs_server.types import SamplingParams

LEAST_LENGTH = 256
"""The smallest length bucket of a decode step, in positions."""
LEAST_TEXT = 32
"""The smallest bucket of text that is read at once."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """Rows on their way to the host: of `sequences[i]`, row `places[i]` of `rows` [B, codebooks + 1]."""

    rows: torch.Tensor
    sequences: tuple[Sequence, ...]
    places: tuple[int, ...]
    arrived: torch.cuda.Event | None


def _fused_draw(model: FrameModel) -> Callable[..., torch.Tensor] | None:
    from higgs_server.engine import draw_kernel

    return draw_kernel.tried(CodeFormat.of(model), model.codebook_size, model.device)


class Runner:
    """Owns everything on the device but the model: the KV cache, kept prefixes, and the sampler's state.

    A decode batch is slots 0 to B-1. Slots among them that draw nothing stand where writing does no harm: at 0 when
    free, else where their next piece of prompt will overwrite it.
    """

    def __init__(
        self, model: FrameModel, *, slots: int, max_len: int, prefix_bytes: int, prefix_files: PrefixFiles | None = None
    ) -> None:
        """`prefix_bytes` is what kept prefixes may take on the device; `prefix_files` keep them longer."""
        self.format = CodeFormat.of(model)
        on_cuda = model.device.type == "cuda"
        self.lookahead = 1 if on_cuda else 0
        """How many tickets may be unread when the next step is launched; without a queue on the device, none."""
        self.padded = on_cuda
        """Whether batch and length are rounded up to buckets, which captured graphs need and which costs work."""
        self.step: Callable[[int, int, int], torch.Tensor] = self._step
        """`_step` for a batch, a length and a reach of the sampler; on CUDA a captured graph for each combination."""
        self.read_text: Callable[[int], torch.Tensor] = self._read_text
        """`_read_text` for a number of rows, likewise."""
        self._draw = draw
        if on_cuda:
            self.step = CapturedSteps(self._step, CudaCapture())
            self.read_text = CapturedSteps(self._read_text, CudaCapture())
            self._draw = tried("Codes are drawn", partial(_fused_draw, model)) or draw
        self._model = model
        with torch.inference_mode():
            self._cache = KVCache(model, slots, max_len)
            self._state = SamplerState.new(slots, self.format, model.device)
            self._text = torch.zeros(3 + model.text_rows, dtype=torch.int64, device=model.device)
        self.prefixes = PrefixCache(prefix_bytes, prefix_files)
        self._keys: dict[Sequence, bytes] = {}
        if on_cuda:
            self.capture()

    @property
    def max_len(self) -> int:
        """Positions a slot has."""
        return self._cache.max_len

    @torch.inference_mode()
    def capture(self) -> None:
        """Runs every shape that default parameters can lead to, while nobody waits and all slots are free.

        What is written for a free slot goes to position 0, and of an empty text nothing is.
        """
        reach = self._reach([SamplingParams()])
        self._text[:3] = 0
        for batch in buckets(1, self._cache.slots):
            for length in buckets(LEAST_LENGTH, self.max_len):
                self.step(batch, length, reach)
        for rows in buckets(LEAST_TEXT, self._model.text_rows):
            self.read_text(rows)

    @torch.inference_mode()
    def prefill(self, piece: Piece) -> Ticket | None:
        """Runs a piece of a prompt; the last piece also draws row 1 and returns its ticket.

        Of a piece that the model reads as text, the row that begins the answer is left to the next decode step, which
        reads the weights of audio anyway, and draws row 1 then.

        With the first piece the prefix is looked up, and copied if another sequence left it here. Pieces come in the
        order of admission, so of many with a new voice only the first computes it.
        """
        sequence = piece.sequence
        slot = sequence.slot
        assert slot is not None
        if piece.start == 0:
            self._reuse_prefix(sequence, slot)
        if piece.stop <= sequence.prefilled:
            return None
        logits = None
        if (text := self._text_of(piece)) is None:
            runs = slice_runs(sequence.runs, piece.start, piece.stop)
            logits = self._model.prefill(self._cache.tensor, slot, piece.start, runs)
        elif text:
            self._to_device([slot, piece.start, len(text), *text])
            self.read_text(bucket(len(text), LEAST_TEXT, self._model.text_rows))
        sequence.prefilled = piece.stop
        if piece.completes_prefix and (key := self._keys.pop(sequence, None)) is not None:
            self.prefixes.put(key, self._cache.copy_out(slot, piece.stop))
        if not piece.completes_prompt:
            self._state.park(slot, piece.stop)
            return None
        self._state.start(slot, sequence.sampling, sequence.row_limit, piece.stop - 1, self._model.codebook_size)
        if logits is None:
            self._state.codes[slot] = self.format.bos
            return None
        drawn = self._draw(
            self._state.view(slot, slot + 1), logits[None], self.format, self._reach([sequence.sampling])
        )
        return self._send(drawn, [sequence], [0])

    def _text_of(self, piece: Piece) -> list[int] | None:
        """A piece's tokens, if it is text but for the row that begins the answer, and the model reads such pieces."""
        most, stop = self._model.text_rows, piece.stop - piece.completes_prompt
        if not most or stop - piece.start > most:
            return None
        runs = slice_runs(piece.sequence.runs, piece.start, stop)
        if not all(isinstance(run, TextRun) for run in runs):
            return None
        return [token for run in runs if isinstance(run, TextRun) for token in run.token_ids.tolist()]

    def _to_device(self, numbers: list[int]) -> None:
        """Where `_read_text` looks for them."""
        sent = torch.tensor(numbers)
        if self._text.is_cuda:
            sent = sent.pin_memory()
        self._text[: len(sent)].copy_(sent, non_blocking=True)

    def _reuse_prefix(self, sequence: Sequence, slot: int) -> None:
        length = sequence.prefix_len
        if length == 0 or not self.prefixes.room_for(length, self._cache):
            return
        key = prefix_key(sequence.runs, length)
        prefix = self.prefixes.get(key)
        if prefix is None:
            self._keys[sequence] = key
            return
        self._cache.copy_in(slot, prefix)
        self._state.park(slot, length)
        sequence.prefilled = length

    @torch.inference_mode()
    def decode(self, sequences: Several[Sequence], running: Several[Sequence]) -> Ticket:
        """One decode step for `sequences`; `running` are all that have a slot, these included."""
        places = [sequence.slot for sequence in sequences if sequence.slot is not None]
        batch = max(places) + 1
        if self.padded:
            batch = bucket(batch, 1, self._cache.slots)
        length = 1 + max(other.position for other in running if other.slot is not None and other.slot < batch)
        if self.padded:
            length = bucket(length, LEAST_LENGTH, self.max_len)
        drawn = self.step(batch, length, self._reach(sequence.sampling for sequence in sequences))
        return self._send(drawn, sequences, places)

    def _step(self, batch: int, length: int, reach: int) -> torch.Tensor:
        """Embed, layers, head, sampling, state: for given arguments, tensors of fixed shape and place."""
        state = self._state.view(0, batch)
        logits = self._model.decode(self._cache.tensor, state.codes, state.position, length)
        return self._draw(state, logits, self.format, reach)

    def _read_text(self, rows: int) -> torch.Tensor:
        """For given arguments, tensors of fixed shape and place."""
        return self._model.read_text(self._cache.tensor, self._text[3 : 3 + rows], self._text[:3])

    def _reach(self, samplings: Iterable[SamplingParams]) -> int:
        """How many codes are put in order: by kernels none."""
        if self._draw is not draw:
            return 0
        return max(reach_of(sampling, self._model.codebook_size) for sampling in samplings)

    def _send(self, drawn: torch.Tensor, sequences: Several[Sequence], places: Several[int]) -> Ticket:
        """Starts the way of drawn rows to the host."""
        for sequence in sequences:
            sequence.drawn += 1
        arrived = None
        if drawn.is_cuda:
            rows = torch.empty(drawn.shape, dtype=drawn.dtype, pin_memory=True)
            rows.copy_(drawn, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        else:
            rows = drawn.to("cpu", copy=True)
        return Ticket(rows, tuple(sequences), tuple(places), arrived)

    def read(self, ticket: Ticket) -> list[tuple[Sequence, list[int] | None]]:
        """Waits for a ticket: each sequence with its row, or None where its logits were not finite."""
        if ticket.arrived is not None:
            ticket.arrived.synchronize()
        rows = ticket.rows.tolist()
        drawn = [rows[place] for place in ticket.places]
        return [
            (sequence, None if broken else row)
            for sequence, (*row, broken) in zip(ticket.sequences, drawn, strict=True)
        ]

    @torch.inference_mode()
    def release(self, sequence: Sequence, slot: int, *, broken: bool = False) -> None:
        """Takes back the slot a sequence had; `broken` says that its cache may hold numbers that are not finite."""
        self._keys.pop(sequence, None)
        self._state.park(slot)
        if broken:
            self._cache.scrub(slot)

    @staticmethod
    def out_of_memory(error: Exception) -> bool:
        """Whether less at once could have gone well; neither PyTorch, cuBLAS nor ONNX Runtime has one type for it."""
        said = str(error).lower()
        return isinstance(error, MemoryError | torch.OutOfMemoryError) or "alloc" in said or "out of memory" in said

    @staticmethod
    def lost(error: Exception) -> bool:
        """Whether the device will not answer this process any more: such an error comes back at every call."""
        return "CUDA error" in str(error) and not Runner.out_of_memory(error)

    def spare_memory(self) -> None:
        """Gives up what is kept only to be faster."""
        self.prefixes.clear()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()

    def free(self) -> None:
        """Gives the device's memory back, also where clients still hold on to the engine. Nothing runs afterwards.

        Idempotent."""
        for part in ("step", "read_text", "_cache", "_state", "_model"):
            self.__dict__.pop(part, None)
        self.prefixes.clear()
