"""Settings that mean the same on each node, without a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from higgs_server.deploy.cluster import with_whole_paths
from higgs_server.settings import Settings

pytestmark = pytest.mark.ray


def test_every_path_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("voices", "scenes", "model"):
        (tmp_path / name).mkdir()
    (tmp_path / "keys").write_text("sk-1")
    settings = with_whole_paths(
        Settings(
            voice_prompts_dir=Path("voices"),
            scene_prompts_dir=Path("scenes"),
            model_path="model",
            audio_tokenizer_path="some/hub-id",
            api_key_file=Path("keys"),
        )
    )
    assert settings.voice_prompts_dir == tmp_path / "voices"
    assert settings.scene_prompts_dir == tmp_path / "scenes"
    assert settings.model_path == str(tmp_path / "model")
    assert settings.audio_tokenizer_path == "some/hub-id"
    assert settings.api_key_file == tmp_path / "keys"
    assert with_whole_paths(Settings()).api_key_file is None
