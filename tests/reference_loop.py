"""The plainest greedy generation there is, to hold networks and engines to.

Delay pattern and end rule as transformers' HiggsAudioV2DelayPatternLogitsProcessor has them, written one row at a
time with nothing clever: codebook k begins at row k + 1; from the row after the first end code in any codebook on,
end codes are forced from codebook 0 upwards, one more each row, until all eight are end codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from higgs_server.engine.interface import FrameModel, Run, TextRun


def length(runs: Sequence[Run]) -> int:
    """Positions that runs take."""
    return sum(len(run.token_ids) if isinstance(run, TextRun) else len(run.rows) for run in runs)


def greedy_rows(model: FrameModel, runs: Sequence[Run], max_rows: int) -> npt.NDArray[np.int64]:
    """Delayed rows [rows, codebooks], the first all begin codes (it is the last row of the prompt)."""
    position = length(runs)
    cache = model.new_kv_cache(1, position + max_rows)
    logits = model.prefill(cache, 0, 0, runs)
    rows = [np.full(model.num_codebooks, model.stream_bos_id)]
    forced = -1
    while len(rows) < max_rows:
        row = logits.argmax(-1).numpy()
        row[len(rows) :] = model.stream_bos_id
        if forced >= 0:
            forced += 1
            row[:forced] = model.stream_eos_id
        elif (row == model.stream_eos_id).any():
            forced = 0
        rows.append(row)
        if (row == model.stream_eos_id).all():
            break
        logits = model.decode(cache, torch.tensor(row)[None], torch.tensor([position]), position + 1)[0]
        position += 1
    return np.array(rows)
