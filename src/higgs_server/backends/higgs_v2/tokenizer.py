"""A prompt string and its reference clips' codes to the runs of text and audio that the network prefills.

Uses the checkpoint's own tokenizer.json. Knows how a prompt is spelled no more than its placeholders, and trusts
prompt.py to have taken special tokens out of what users wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from higgs_server.backends.higgs_v2.config import HiggsConfig
from higgs_server.backends.higgs_v2.prompt import PLACEHOLDERS
from higgs_server.engine.delay import delay
from higgs_server.engine.interface import AudioRun, Run, TextRun
from higgs_server.types import InvalidRequest, LoadError


class HiggsTokenizer:
    """Encodes prompts for one checkpoint. Safe to use from many threads."""

    def __init__(self, folder: Path, config: HiggsConfig):
        """Raises LoadError where tokenizer.json is missing, damaged or another model's."""
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise LoadError(
                f"{folder} lacks tokenizer.json: download the model again.",
                f"{folder} 缺少 tokenizer.json：请重新下载模型。",
            )
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises plain Exception
            raise LoadError(f"{file} cannot be read: {error}.", f"无法读取 {file}：{error}。") from None
        ids = [id for token in PLACEHOLDERS if (id := self._tokenizer.token_to_id(token)) is not None]
        if len(ids) < len(PLACEHOLDERS) or self._tokenizer.get_vocab_size() > config.vocab_size:
            raise LoadError(
                f"{file} does not belong to this model: it must have {' and '.join(PLACEHOLDERS)} and at most "
                f"{config.vocab_size} tokens. Download the model again.",
                f"{file} 与模型不符：须含 {' 和 '.join(PLACEHOLDERS)}，且不超过 {config.vocab_size} 个词元。"
                "请重新下载模型。",
            )
        self._placeholders = ids
        self._config = config

    def encode(self, text: str) -> npt.NDArray[np.int64]:
        """Token ids [n] of a string; special tokens in it count as such, none is added."""
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int64)

    def runs(self, prompt: str, reference_codes: Sequence[npt.NDArray[np.int64]] = ()) -> list[Run]:
        """The prompt with each placeholder replaced by the next clip's codes [T, codebooks], delayed.

        The row of begin codes that every answer starts with stands at the end. Raises InvalidRequest where clips and
        placeholders do not go together.
        """
        ids = self.encode(prompt)
        places = np.flatnonzero(np.isin(ids, self._placeholders))
        if len(places) != len(reference_codes):
            raise InvalidRequest(
                f"The prompt has room for {len(places)} reference clips, and {len(reference_codes)} were given.",
                f"提示词可容纳 {len(places)} 段参考音频，实际给出 {len(reference_codes)} 段。",
                param="reference_codes",
            )
        runs: list[Run] = []
        begin = 0
        for place, codes in zip(places.tolist(), reference_codes, strict=True):
            if place > begin:
                runs.append(TextRun(ids[begin:place]))
            runs.append(AudioRun(self._delayed(codes)))
            begin = place + 1
        if begin < len(ids):
            runs.append(TextRun(ids[begin:]))
        runs.append(AudioRun(np.full((1, self._config.num_codebooks), self._config.stream_bos_id, np.int64)))
        return runs

    def _delayed(self, codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        c = self._config
        codes = np.asarray(codes)
        plain = min(c.stream_bos_id, c.stream_eos_id)
        if (
            codes.ndim != 2
            or codes.shape[1] != c.num_codebooks
            or not np.issubdtype(codes.dtype, np.integer)
            or ((codes < 0) | (codes >= plain)).any()
        ):
            raise InvalidRequest(
                f"Reference codes must be whole numbers from 0 to {plain - 1}, [frames, {c.num_codebooks}].",
                f"参考编码须为 0 到 {plain - 1} 的整数，形状为 [帧数, {c.num_codebooks}]。",
                param="reference_codes",
            )
        return delay(codes.astype(np.int64), c.stream_bos_id, c.stream_eos_id)
