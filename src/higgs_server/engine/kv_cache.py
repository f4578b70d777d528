"""Keys and values: one slot an utterance, and the prefixes of voices kept to be copied instead of computed.

Knows shapes and bytes; what the positions mean is the model's business. All copies are queued on the device in the
order of the calls, so a slot can be released and given away while the step that used it still runs.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable

import torch

from higgs_server.engine.interface import FrameModel, Run, TextRun
from higgs_server.engine.prefix_files import PrefixFiles
from higgs_server.engine.sequence import slice_runs


def prefix_key(runs: Iterable[Run], length: int) -> bytes:
    """Content hash of the first `length` positions of a prompt, whatever runs they are cut into."""
    digest = hashlib.blake2b(digest_size=32)
    kind = None
    for run in slice_runs(runs, 0, length):
        if type(run) is not kind:  # neighbouring runs of a kind are one run to the model
            kind = type(run)
            digest.update(b"text" if kind is TextRun else b"audio")
        digest.update((run.token_ids if isinstance(run, TextRun) else run.rows).astype("<i8").tobytes())
    return digest.digest()


class KVCache:
    """The cache of the running utterances: `tensor` is [layers, 2, slots, kv_heads, max_len, head_dim]."""

    def __init__(self, model: FrameModel, slots: int, max_len: int) -> None:
        self.slots = slots
        self.max_len = max_len
        self.tensor = model.new_kv_cache(slots, max_len)

    def copy_out(self, slot: int, length: int) -> torch.Tensor:
        """A copy of the first `length` positions of a slot, [layers, 2, kv_heads, length, head_dim]."""
        return self.tensor[:, :, slot, :, :length].clone()

    def copy_in(self, slot: int, prefix: torch.Tensor) -> None:
        """Puts what `copy_out` gave at the beginning of a slot."""
        self.tensor[:, :, slot, :, : prefix.shape[3]] = prefix

    def scrub(self, slot: int) -> None:
        """Zeroes a slot: attention multiplies masked positions by 0, and 0 * NaN is NaN for the next tenant."""
        self.tensor[:, :, slot] = 0


class PrefixCache:
    """Copies of prefixes by content, the least recently used dropped beyond `max_bytes`; `files` keep them longer."""

    def __init__(self, max_bytes: int, files: PrefixFiles | None = None) -> None:
        self.max_bytes = max_bytes
        self._files = files
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._prefixes: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._prefixes)

    def __contains__(self, key: bytes) -> bool:
        return key in self._prefixes

    def get(self, key: bytes) -> torch.Tensor | None:
        """The prefix, now the most recently used; counts a hit or a miss."""
        prefix = self._prefixes.get(key)
        if prefix is None and self._files is not None and (prefix := self._files.get(key)) is not None:
            self._keep(key, prefix)
        if prefix is None:
            self.misses += 1
            return None
        self.hits += 1
        self._prefixes.move_to_end(key)
        return prefix

    def room_for(self, length: int, cache: KVCache) -> bool:
        """Whether a prefix of `length` positions of `cache` may be kept at all."""
        return length * cache.tensor[:, :, 0, :, 0].nbytes <= self.max_bytes

    def put(self, key: bytes, prefix: torch.Tensor) -> None:
        """Keeps a prefix, if it fits."""
        if key in self._prefixes or prefix.nbytes > self.max_bytes:
            return
        if self._files is not None:
            self._files.put(key, prefix)
        self._keep(key, prefix)

    def _keep(self, key: bytes, prefix: torch.Tensor) -> None:
        self._prefixes[key] = prefix
        self.bytes += prefix.nbytes
        while self.bytes > self.max_bytes:
            _, oldest = self._prefixes.popitem(last=False)
            self.bytes -= oldest.nbytes

    def clear(self) -> None:
        """Drops all prefixes."""
        self._prefixes.clear()
        self.bytes = 0
