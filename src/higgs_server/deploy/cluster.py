"""What a Ray cluster has, and settings that mean the same on each of its nodes."""

from __future__ import annotations

from pathlib import Path

import ray
from higgs_server import doctor
from higgs_server.settings import Settings


def gpus() -> int:
    """Of the whole cluster, busy ones too; before this process has joined one, of this machine."""
    if not ray.is_initialized():
        return len(doctor.gpus())
    return int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]


def with_whole_paths(settings: Settings) -> Settings:
    """Workers have another working directory than whoever starts them."""
    paths: dict[str, Path | str] = {}
    for name in ("voice_prompts_dir", "scene_prompts_dir"):
        if isinstance(folder := getattr(settings, name), Path) and folder.is_dir():
            paths[name] = folder.absolute()
    if settings.api_key_file is not None:
        paths["api_key_file"] = settings.api_key_file.absolute()
    for name in ("model_path", "audio_tokenizer_path"):
        if Path(getattr(settings, name)).is_dir():
            paths[name] = str(Path(getattr(settings, name)).absolute())
    return settings.model_copy(update=paths)
