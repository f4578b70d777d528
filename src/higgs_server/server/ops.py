"""Endpoints for those who run the server: `/health`, `/ready`, `/metrics`, and `/`: the studio for browsers."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from higgs_server import __version__
from higgs_server.server import studio
from higgs_server.server.errors import message_for, said
from higgs_server.server.metrics import Metrics
from higgs_server.server.model import ServedModel
from higgs_server.server.openapi import ANY_ERRORS
from higgs_server.server.schemas import Readiness
from higgs_server.settings import Settings


def routes(settings: Settings, model: ServedModel, measured: Metrics) -> APIRouter:
    """The router of the operations endpoints."""
    router = APIRouter(tags=["operations"], responses=ANY_ERRORS)

    @router.get("/health")
    async def health() -> dict[str, str]:
        """200 as long as the process answers."""
        return {"status": "ok"}

    @router.get("/ready", response_model=Readiness, responses={503: {"model": Readiness}})
    async def ready(request: Request) -> Response:
        """200 while a model can speak; 503, with Retry-After where waiting helps, while it loads and when it failed."""
        state = model.state
        if state.error is not None:
            message = message_for(state.error, request.headers)
        elif state.status == "ready":
            message = said(request.headers, "Ready to speak.", "已就绪。")
        else:
            message = said(request.headers, "The model is loading.", "模型正在加载。")
        body = Readiness(
            status=state.status,
            model=settings.model_path,
            stage=state.stage,
            progress=round(state.fraction, 3),
            message=message,
        )
        wait = 2 if state.status == "loading" else state.error and state.error.retry_after
        headers = {"Retry-After": str(wait)} if wait else None
        return JSONResponse(body.model_dump(), 200 if state.status == "ready" else 503, headers)

    @router.get("/metrics", response_class=PlainTextResponse)
    def metrics(request: Request) -> Response:
        """Counts, times and states for Prometheus; OpenMetrics where `Accept` asks for it."""
        text, content_type = measured.export(request.headers.get("accept", ""))
        return Response(text, headers={"content-type": content_type})

    @router.get("/", response_model=dict[str, Any])
    async def root(request: Request) -> Response:
        """The studio for browsers (`Accept: text/html`), else what is here."""
        if studio.wants_page(request.headers.get("accept", "")):
            response = await studio.file("index.html", request.scope)
        else:
            endpoints = ["/docs", *sorted(set(request.app.openapi()["paths"]) - {"/"})]
            response = JSONResponse({"message": "higgs-audio-server", "version": __version__, "endpoints": endpoints})
        response.headers["vary"] = "Accept"
        return response

    return router
