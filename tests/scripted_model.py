"""Any FrameModel with what happens to it written down beforehand, and what is asked of it recorded.

An answer ends where a script says so and nowhere else, so that tests know its length whatever the network. Scripts
are for prompts that begin with a certain token, and are prefilled from their beginning (not from a kept prefix on).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from higgs_server.engine.interface import FrameModel, Run, TextRun
from higgs_server.engine.sequence import positions_of


class ScriptedModel:
    """`ends`, `breaks`, `constant`, `fails`, `fail_decode`: what happens to prompts that begin with a certain token.

    ends: {first token: (position, codebook)}: after that position an end code is all but certain in that codebook.
    breaks: {first token: position}: after that position the logits are NaN, and so is the cache.
    constant: first tokens after which the same codes come for ever.
    fails: first tokens whose prefill raises. fail_decode: decode raises once when a row's prompt begins with it.
    on_call: called with "prefill" or "decode" before anything is done; may raise.
    """

    def __init__(self, model: FrameModel) -> None:
        self._model = model
        self.num_codebooks, self.codebook_size = model.num_codebooks, model.codebook_size
        self.stream_bos_id, self.stream_eos_id = model.stream_bos_id, model.stream_eos_id
        self.max_positions, self.device, self.dtype = model.max_positions, model.device, model.dtype
        self.text_rows = model.text_rows
        self.ends: dict[int, tuple[int, int]] = {}
        self.breaks: dict[int, int] = {}
        self.constant: set[int] = set()
        self.fails: set[int] = set()
        self.fail_decode: set[int] = set()
        self.on_call: Callable[[str], None] = lambda name: None
        self.prefilled: list[tuple[int, int, int]] = []
        """(slot, start, stop) of every prefill call, and of text that is read."""
        self.decoded: list[int] = []
        """The batch of every decode call."""
        self._first_tokens: dict[int, int] = {}

    def new_kv_cache(self, slots: int, max_len: int) -> torch.Tensor:
        return self._model.new_kv_cache(slots, max_len)

    def prefill(self, kv_cache: torch.Tensor, slot: int, start: int, runs: Sequence[Run]) -> torch.Tensor:
        stop = start + positions_of(runs)
        self.prefilled.append((slot, start, stop))
        self.on_call("prefill")
        if start == 0 and isinstance(runs[0], TextRun):
            self._first_tokens[slot] = int(runs[0].token_ids[0])
        logits = self._model.prefill(kv_cache, slot, start, runs)
        if self._first_tokens.get(slot) in self.fails:
            raise RuntimeError("no such prompt")
        self._follow_script(slot, stop - 1, logits, kv_cache)
        return logits

    def read_text(self, kv_cache: torch.Tensor, token_ids: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        slot, start, count = place.tolist()
        self.prefilled.append((slot, start, start + count))
        self.on_call("prefill")
        if start == 0:
            self._first_tokens[slot] = int(token_ids[0])
        result = self._model.read_text(kv_cache, token_ids, place)
        if self._first_tokens.get(slot) in self.fails:
            raise RuntimeError("no such prompt")
        return result

    def decode(self, kv_cache: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor, max_len: int) -> torch.Tensor:
        self.decoded.append(len(rows))
        self.on_call("decode")
        logits = self._model.decode(kv_cache, rows, positions, max_len)
        for slot, position in enumerate(positions.tolist()):
            if (token := self._first_tokens.get(slot)) in self.fail_decode:
                self.fail_decode.discard(token)  # type: ignore[arg-type]
                raise RuntimeError("the device is unhappy")
            self._follow_script(slot, position, logits[slot], kv_cache)
        return logits

    def _follow_script(self, slot: int, position: int, logits: torch.Tensor, kv_cache: torch.Tensor) -> None:
        """Changes a row's logits [codebooks, codes] after `position` in place."""
        token = self._first_tokens.get(slot, -1)
        logits[:, self.stream_bos_id :] = logits[:, self.stream_bos_id :] * 0 - 20.0  # NaN stays
        if token in self.constant:
            logits[:, 0] = 60.0
        end, codebook = self.ends.get(token, (-1, 0))
        if position == end:
            logits[codebook, self.stream_eos_id] = 60.0
        if position >= self.breaks.get(token, position + 1):
            logits[:] = torch.nan
            kv_cache[:, :, slot, :, 1 : position + 1] = torch.nan
