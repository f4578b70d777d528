"""The FastAPI application: routers, errors and the edge around them, over one served model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from higgs_server import __version__
from higgs_server.library.voices import VoiceLibrary
from higgs_server.logs import log_request
from higgs_server.server import (
    conversation,
    errors,
    native,
    openai,
    ops,
    plan,
    profiles,
    studio,
    uploads,
    voices,
)
from higgs_server.server.callers import Callers
from higgs_server.server.edge import Edge
from higgs_server.server.metrics import Metrics
from higgs_server.server.model import ServedModel
from higgs_server.server.origins import Origins
from higgs_server.settings import Settings
from higgs_server.tracing import Tracing

DESCRIPTION = "Text in, speech out: a self-hosted speech server around Higgs Audio v2."


def create_app(settings: Settings) -> FastAPI:
    """The whole server. The model begins to load once the port is about to open, and answers 503 until then.

    Raises BadSettings where the file of keys cannot be used.
    """
    model = ServedModel(settings)
    callers = Callers(settings)
    origins = Origins(settings)
    metrics = Metrics(model)
    tracing = Tracing(settings.otlp_endpoint, __version__) if settings.otlp_endpoint else None
    observers = (log_request, metrics.observe, *((tracing.observe,) if tracing else ()))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        # Each stream that is sent encodes its sound off the loop.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(64, thread_name_prefix="work"))
        model.start()
        yield {"patience": settings.client_timeout, "stopping": model.stopping}
        await asyncio.to_thread(model.close)  # connections that were cut off close meanwhile
        if tracing is not None:
            await asyncio.to_thread(tracing.close)

    app = FastAPI(title="higgs-audio-server", version=__version__, description=DESCRIPTION, lifespan=lifespan)
    app.state.model, app.state.metrics = model, metrics  # for whoever runs one or many of these
    recordings = voices.Recordings(VoiceLibrary(settings.voice_prompts_dir), settings)
    routers = [part.routes(settings, model) for part in (native, plan, openai)]
    routers += [part.routes(settings, recordings) for part in (voices, uploads)]
    routers.append(profiles.routes(settings))
    routers.append(conversation.routes(settings, model, callers))
    routers.append(ops.routes(settings, model, metrics))
    routers.append(studio.routes())
    for router in routers:
        app.include_router(router)
    errors.install(app)
    endpoints = frozenset(route.path for router in routers for route in router.routes)
    app.add_middleware(
        Edge, settings=settings, callers=callers, origins=origins, observers=observers, endpoints=endpoints
    )
    if origins.allowed:
        # Around the edge: whatever it answers, also without a key, is for the page that asked.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins.allowed,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["*"],
            expose_headers=["retry-after", "x-request-id", "x-seed", "x-finish-reason", "x-sample-rate"],
        )
    return app
