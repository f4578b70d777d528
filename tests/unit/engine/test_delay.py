from __future__ import annotations

import numpy as np
import pytest

from higgs_server.engine.delay import delay, undelay

BOS, EOS = 1024, 1025


def test_three_codebooks_by_hand() -> None:
    codes = np.array([[1, 2, 3], [4, 5, 6]])
    rows = delay(codes, BOS, EOS)
    assert rows.tolist() == [
        [BOS, BOS, BOS],
        [1, BOS, BOS],
        [4, 2, BOS],
        [EOS, 5, 3],
        [EOS, EOS, 6],
        [EOS, EOS, EOS],
    ]
    assert undelay(rows).tolist() == [[BOS] * 3, [1, 2, 3], [4, 5, 6], [EOS] * 3]


@pytest.mark.parametrize("frames", [0, 1, 7, 8, 40])
def test_a_clip_of_t_frames_is_t_plus_nine_rows_and_comes_back(frames: int) -> None:
    codes = np.random.default_rng(frames).integers(0, 1024, (frames, 8))
    rows = delay(codes, BOS, EOS)
    assert rows.shape == (frames + 9, 8)
    assert (rows[0] == BOS).all()
    assert (rows[-1] == EOS).all()
    assert np.array_equal(undelay(rows)[1:-1], codes)


def test_row_r_completes_one_frame_each_once_the_last_codebook_has_begun() -> None:
    rows = delay(np.random.default_rng(0).integers(0, 1024, (12, 8)), BOS, EOS)
    for n in range(len(rows) + 1):
        assert len(undelay(rows[:n])) == max(0, n - 7)
        assert np.array_equal(undelay(rows[:n]), undelay(rows)[: max(0, n - 7)])
