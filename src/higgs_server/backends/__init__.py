"""The models this server can speak with: one module each, imported only when it is asked for."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import cast

from higgs_server.engine.interface import Backend
from higgs_server.settings import EMBEDDED, HIGGS
from higgs_server.types import LoadError, LoadOptions, Progress


@dataclass(frozen=True, slots=True)
class BackendEntry:
    """Where a backend lives. Its module has `load(options: LoadOptions, progress: Progress) -> Backend`."""

    module: str
    extra: str | None = None
    """The extra of this package that brings what the module imports; None where the base install has it."""


BACKENDS = {
    "embedded": BackendEntry("higgs_server.backends.embedded"),
    "higgs_v2": BackendEntry("higgs_server.backends.higgs_v2", extra="higgs"),
    "remote": BackendEntry("higgs_server.backends.remote"),
}

USE_EMBEDDED = f"python api_server.py --model-path {EMBEDDED}"
USE_HIGGS = f"python api_server.py --model-path {HIGGS}"


def backend_for(model_path: str) -> str:
    """The BACKENDS key that speaks for a --model-path."""
    if model_path.startswith(("http://", "https://")):
        return "remote"
    return "embedded" if model_path == EMBEDDED else "higgs_v2"


def load_backend(options: LoadOptions, progress: Progress) -> Backend:
    """Loads the model. Raises LoadError saying what is missing and what to start instead."""
    entry = BACKENDS[backend_for(options.model_path)]
    try:
        module = importlib.import_module(entry.module)
    except ImportError as error:
        if entry.extra is None or not _is_foreign(error):
            raise
        command = f"pip install 'higgs-audio-server[{entry.extra}]'"
        raise LoadError(
            f"{options.model_path} needs the package {error.name}, which is not installed. Install it with "
            f"`{command}` (in a clone: `pip install -e '.[{entry.extra}]'`), or start the embedded voice with "
            f"`{USE_EMBEDDED}`.",
            f"{options.model_path} 需要尚未安装的软件包 {error.name}。请运行 `{command}` 安装"
            f"（源码目录中：`pip install -e '.[{entry.extra}]'`），或用 `{USE_EMBEDDED}` 启动内置语音。",
            code="extra_missing",
        ) from None
    return cast(Backend, module.load(options, progress))


def _is_foreign(error: ImportError) -> bool:
    """Whether what could not be imported is another's package, not a mistake of ours."""
    return bool(error.name) and not str(error.name).startswith("higgs_server")
