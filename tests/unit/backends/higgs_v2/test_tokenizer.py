from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from higgs_server.backends.higgs_v2.config import HiggsConfig
from higgs_server.backends.higgs_v2.prompt import build_prompt
from higgs_server.backends.higgs_v2.tokenizer import HiggsTokenizer
from higgs_server.engine.delay import delay
from higgs_server.engine.interface import AudioRun, Run, TextRun
from higgs_server.types import InvalidRequest, LoadError
from make_tiny_checkpoint import NATIVE_CONFIG, TOKENIZER

CONFIG = HiggsConfig.from_dict(NATIVE_CONFIG)
PROMPTS = [case["prompt"] for case in json.loads((TOKENIZER.parent / "prompts.json").read_text())["cases"]]
ODD = [
    "",
    " ",
    "\n\n",
    "  two  spaces ",
    "a\u00a0b",
    "🎙️👩‍👩‍👧",
    "ﷺ",
    "é",
    "e\u0301",
    "\u200b",
    "<|eot_id|",
    "<|eot_id|>x",
    "<||>",
    "\x00",
]


@pytest.fixture(scope="module")
def tokenizer() -> HiggsTokenizer:
    return HiggsTokenizer(TOKENIZER, CONFIG)


def clip(frames: int) -> np.ndarray:
    return np.random.default_rng(frames).integers(0, 1024, (frames, 8))


def test_ids_are_those_of_transformers(tokenizer: HiggsTokenizer) -> None:
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(TOKENIZER)
    for text in PROMPTS + ODD:
        assert tokenizer.encode(text).tolist() == reference.encode(text, add_special_tokens=False), repr(text)


def kinds(runs: list[Run]) -> list[str]:
    return ["text" if isinstance(run, TextRun) else f"audio {len(run.rows)}" for run in runs]


def test_a_prompt_ends_with_the_row_that_starts_the_answer(tokenizer: HiggsTokenizer) -> None:
    text, start = tokenizer.runs("<|begin_of_text|>Hi.<|audio_out_bos|>")
    assert isinstance(text, TextRun)
    assert text.token_ids[0] == 256
    assert text.token_ids[-1] == 263
    assert isinstance(start, AudioRun)
    assert start.rows.tolist() == [[1024] * 8]


def test_clips_stand_where_their_placeholders_stood(tokenizer: HiggsTokenizer) -> None:
    one, two = clip(3), clip(11)
    runs = tokenizer.runs("a<|AUDIO|>b<|AUDIO_OUT|><|audio_out_bos|>", [one, two])
    assert kinds(runs) == ["text", "audio 12", "text", "audio 20", "text", "audio 1"]
    assert isinstance(runs[1], AudioRun)
    assert isinstance(runs[3], AudioRun)
    assert np.array_equal(runs[1].rows, delay(one, 1024, 1025))
    assert np.array_equal(runs[3].rows, delay(two, 1024, 1025))
    whole = tokenizer.encode("a<|AUDIO|>b<|AUDIO_OUT|><|audio_out_bos|>")
    text = np.concatenate([run.token_ids for run in runs if isinstance(run, TextRun)])
    assert text.tolist() == [id for id in whole if id not in (265, 266)]


def test_no_empty_runs_between_neighbouring_clips(tokenizer: HiggsTokenizer) -> None:
    assert kinds(tokenizer.runs("<|AUDIO|><|AUDIO|>", [clip(1), clip(2)])) == ["audio 10", "audio 11", "audio 1"]
    assert kinds(tokenizer.runs("")) == ["audio 1"]


@pytest.mark.parametrize("clips", [0, 1, 3])
def test_as_many_clips_as_placeholders(tokenizer: HiggsTokenizer, clips: int) -> None:
    with pytest.raises(InvalidRequest, match=f"room for 2 reference clips, and {clips} were given"):
        tokenizer.runs("<|AUDIO|>x<|AUDIO|>", [clip(2)] * clips)


@pytest.mark.parametrize(
    "codes", [np.zeros((3, 7), int), np.zeros(8, int), np.full((3, 8), 1024), np.full((3, 8), -1), np.zeros((3, 8))]
)
def test_codes_that_are_none(tokenizer: HiggsTokenizer, codes: np.ndarray) -> None:
    with pytest.raises(InvalidRequest, match="from 0 to 1023"):
        tokenizer.runs("<|AUDIO|>", [codes])


@pytest.mark.parametrize(
    "text", ["<|eot_id|>", "x<|AUDIO_OUT|>y", "<<|eot_id|>", "<|<|eot_id|>|>", "<|eot<|eot_id|>_id|>", "<|AUDIO|>"]
)
def test_special_tokens_in_a_users_text_are_text(tokenizer: HiggsTokenizer, text: str) -> None:
    def special(prompt: str) -> list[int]:
        return [id for id in tokenizer.encode(prompt).tolist() if id >= 256]

    assert special(build_prompt(f"a {text} b", scene=text)) == special(build_prompt("a b", scene="c"))


def test_folders_without_this_models_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"lacks tokenizer\.json"):
        HiggsTokenizer(tmp_path, CONFIG)
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    with pytest.raises(LoadError, match="cannot be read"):
        HiggsTokenizer(tmp_path, CONFIG)
    settings = json.loads((TOKENIZER / "tokenizer.json").read_text())
    settings["added_tokens"] = [token for token in settings["added_tokens"] if token["content"] != "<|AUDIO|>"]
    file.write_text(json.dumps(settings))
    with pytest.raises(LoadError, match="does not belong"):
        HiggsTokenizer(tmp_path, CONFIG)
