"""Replicas of the server on Ray Serve: `serve run higgs_server.deploy.ray_serve:app model_path=embedded`.

Each replica is the whole FastAPI application with an engine of its own, on a GPU of its own where there are any. Ray
Serve routes to the replica with the most room, starts and ends replicas with the load, and lets one that ends finish
what it speaks. Settings have the names they have everywhere: arguments of the application, environment, file.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Request, Response
from ray.serve import Application, Deployment

from higgs_server.backends import backend_for
from higgs_server.deploy.behind_proxy import BehindProxy
from higgs_server.deploy.cluster import gpus, with_whole_paths
from higgs_server.deploy.fleet_metrics import CONTENT_TYPE, merge
from higgs_server.logs import set_up_logging
from higgs_server.server.app import create_app
from higgs_server.settings import Settings
from ray import serve

SLOTS_GPU, SLOTS_CPU = 32, 4
"""Utterances a replica generates at the same time, where --max-running does not say."""
LONGEST_SPEECH_SECONDS = 600.0
"""What a replica that ends may take to finish what it speaks."""


class Replica:
    """One engine and the application around it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._app: FastAPI | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray Serve calls it in the replica, once."""
        settings = self._settings
        set_up_logging(settings.log_level, None, settings.log_format)
        self._app = create_app(settings)
        # Before our own /metrics, which knows of one replica only: whichever answers a scrape answers for all.
        self._app.add_api_route("/metrics", _fleet_metrics, include_in_schema=False)
        self._app.router.routes.insert(0, self._app.router.routes.pop())
        self._app.add_middleware(BehindProxy)
        return self._app

    async def check_health(self) -> None:
        """Ray Serve's question. A new replica gets no requests before the first answer, and that waits for the model.

        Raises where there is no model, or its engine has given up: such a replica is replaced.
        """
        assert self._app is not None
        model = self._app.state.model
        while model.state.status == "loading":
            await asyncio.sleep(0.05)
        error = model.state.error
        if error is not None and error.retry_after is None:
            raise RuntimeError(str(error))

    def own_metrics(self) -> tuple[str, str]:
        """This replica's name, and its metrics in Prometheus' text format."""
        assert self._app is not None
        text: bytes = self._app.state.metrics.export("")[0]
        return str(serve.get_replica_context().replica_tag), text.decode()


async def _fleet_metrics(request: Request) -> Response:
    """Every replica's metrics, each with its `replica`."""
    context = serve.get_replica_context()
    fleet = serve.get_deployment_handle(context.deployment, context.app_name)
    answers = await fleet.broadcast("own_metrics").results_async(return_exceptions=True)
    pages = dict(answer for answer in answers if not isinstance(answer, BaseException))  # not of one that just ended
    return Response(merge(pages), headers={"content-type": CONTENT_TYPE})


def deployment(settings: Settings, kind: type[Replica] = Replica) -> Deployment:
    """How Ray Serve runs replicas with complete settings; a config file may say otherwise, under `deployments`."""
    slots = settings.max_running or SLOTS_CPU
    configured = serve.deployment(
        name="Replica",
        ray_actor_options={"num_cpus": 1, "num_gpus": 1 if _on_gpu(settings) else 0},
        # A few more than there are slots: no slot idles between two utterances, and /health does not wait for one.
        max_ongoing_requests=slots + max(2, slots // 4),
        autoscaling_config={
            "min_replicas": 1,
            "max_replicas": 8,
            "target_ongoing_requests": max(1, slots * 3 // 4),
        },
        health_check_period_s=5,
        graceful_shutdown_timeout_s=LONGEST_SPEECH_SECONDS,
        max_constructor_retry_count=3,
    )
    return configured(serve.ingress()(kind))


def complete(settings: Settings) -> Settings:
    """Router and engine agree on the slots, and every node finds the same files."""
    slots = settings.max_running or (SLOTS_GPU if _on_gpu(settings) else SLOTS_CPU)
    return with_whole_paths(settings.model_copy(update={"max_running": slots}))


def app(args: dict[str, Any]) -> Application:
    """The application. `args` are settings by name; those not given come from the environment or the file."""
    settings = complete(Settings(**args))
    return deployment(settings).bind(settings)


def _on_gpu(settings: Settings) -> bool:
    wanted = settings.device == "cuda" or (settings.device == "auto" and gpus() > 0)
    return wanted and backend_for(settings.model_path) == "higgs_v2"
