"""The delay pattern: codebook k lags k frames, so that one row of codes can be predicted at once.

The space between is filled with the stream's begin code in front and its end code behind (MusicGen's pattern, as
transformers' HiggsAudioV2Processor builds it). Pure numpy; knows no model and no sampling.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
"""Delayed rows [rows, codebooks]."""


def delay(codes: npt.NDArray[np.int64], bos_id: int, eos_id: int) -> Rows:
    """A clip's codes [frames, codebooks] as the rows of a prompt [frames + 1 + codebooks, codebooks].

    The first row is all `bos_id`, the last all `eos_id`: T frames of 8 codebooks are T + 9 rows.
    """
    frames, codebooks = codes.shape
    rows = np.empty((frames + 1 + codebooks, codebooks), np.int64)
    for k in range(codebooks):
        rows[: k + 1, k] = bos_id
        rows[k + 1 : k + 1 + frames, k] = codes[:, k]
        rows[k + 1 + frames :, k] = eos_id
    return rows


def undelay(rows: Rows) -> npt.NDArray[np.int64]:
    """The frames that delayed rows complete: row r completes frame r - codebooks + 1 of them.

    rows: [n, codebooks] -> [max(0, n - codebooks + 1), codebooks], begin and end codes still in it. Given rows from
    the all-begin row on, the first frame is that of the begin codes and the rest are the clip's.
    """
    n, codebooks = rows.shape
    frames = max(0, n - codebooks + 1)
    return np.stack([rows[k : k + frames, k] for k in range(codebooks)], axis=1)
