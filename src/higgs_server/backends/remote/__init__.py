"""Another engine that serves a model already: our API, studio and voices in front of its OpenAI speech API.

SGLang-Omni, vLLM-Omni and this server itself are known to fit. Knows nothing of the model but what it is told.
"""

from __future__ import annotations

import time

from higgs_server.backends.remote.backend import RemoteBackend
from higgs_server.backends.remote.upstream import Upstream
from higgs_server.types import LoadError, LoadOptions, ModelInfo, NotReady, Progress

LOAD_SECONDS = 600.0
"""How long an engine that does not answer yet is waited for: it may be loading."""

MAX_RUNNING = 32
"""Requests sent at once: an engine batches what it has, and holds a queue of its own."""


def load(options: LoadOptions, progress: Progress) -> RemoteBackend:
    """Asks the engine what it is. Raises LoadError where it cannot be reached or refuses."""
    upstream = Upstream(options.model_path, options.remote_api_key)
    progress(f"asking {upstream.address}", 0.0)
    deadline = time.monotonic() + LOAD_SECONDS
    while True:
        try:
            told = upstream.describe()
            break
        except NotReady as error:
            if time.monotonic() > deadline:
                raise LoadError(f"{error} Is it running?", f"{error.zh}它在运行吗？") from None
            progress(f"waiting for {upstream.address}", 0.0)
            time.sleep(1)
    progress("ready", 1.0)
    info = ModelInfo(
        name=options.model_path,
        device="remote",
        dtype="unknown",
        max_running=options.max_running or MAX_RUNNING,
        features=told.features,
        max_new_tokens=min(options.max_new_tokens, told.max_new_tokens or options.max_new_tokens),
        note=f"{told.model} speaks, served by another engine at {upstream.address}.",
        extra={"model": told.model, "voices": list(told.voices)},
    )
    return RemoteBackend(upstream, info, told)
