"""What engines are tested over: a fake that remembers exactly, and one tiny checkpoint on everything that runs it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine_clients import settle
from fake_model import FakeModel
from higgs_server.engine.engine import Engine
from higgs_server.engine.interface import FrameModel
from make_tiny_checkpoint import CODEBOOKS, HIDDEN, tiny_weights, write_language_model
from networks import RUNNERS, network_of
from scripted_model import ScriptedModel


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint that writes frames as the fake model does, in 30 codes."""
    weights = tiny_weights(8)
    for name in ("model.embed_audio_tokens.embed_audio_tokens.weight", "audio_lm_head.weight"):
        weights[name] = weights[name].view(CODEBOOKS, -1, HIDDEN)[:, : FakeModel.codebook_size].flatten(0, 1)
    folder = write_language_model(tmp_path_factory.mktemp("tiny"), weights)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "codebook_size": FakeModel.codebook_size,
        "audio_stream_bos_id": FakeModel.stream_bos_id,
        "audio_stream_eos_id": FakeModel.stream_eos_id,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session", params=["fake", "fake that reads text", *RUNNERS])
def network(request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> FrameModel:
    """What a row would be if nothing happened: of no test's own, and the same for all."""
    if request.param.startswith("fake"):
        return FakeModel(text_rows=100 if "text" in request.param else 0)
    return network_of(checkpoint, request.param, tmp_path_factory.mktemp("packed"))


@pytest.fixture
def model(network: FrameModel) -> ScriptedModel:
    return ScriptedModel(network)


@pytest.fixture
def engine(model: ScriptedModel) -> Iterator[Engine]:
    with Engine(model, slots=8, max_len=400, prefill_budget=16) as engine:
        yield engine
        settle(engine)
