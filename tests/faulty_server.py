"""The real server with a model that can be held still, broken and looked into: `python tests/faulty_server.py FLAGS`.

Besides the server's own endpoints: `POST /break/NAME?after=N` makes the call after the next N of what NAME stands for
fail.
`POST /hold/NAME?after=N` stops its calls after the next N, `POST /step/NAME` lets one through, `POST /free/NAME` all.
`GET /inside` tells what runs and what has been called. SIGUSR1 frees all, when no endpoint answers any more.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from higgs_server import main
from higgs_server.backends.embedded.heart import Heart
from higgs_server.backends.higgs_v2.codec import HiggsCodec
from higgs_server.backends.higgs_v2.network import HiggsNetwork
from higgs_server.engine.codec_stream import CodecWorker
from higgs_server.engine.engine import Engine
from higgs_server.engine.scheduler import Scheduler
from higgs_server.server import app as application
from higgs_server.server.model import ServedModel

POINTS: dict[str, tuple[Any, str]] = {
    "prefill": (HiggsNetwork, "prefill"),
    "decode": (HiggsNetwork, "decode"),
    "encode": (HiggsCodec, "encode"),
    "codec": (HiggsCodec, "decode"),
    "codec-thread": (CodecWorker, "_decode"),
    "engine": (Scheduler, "drawing"),
    "begin": (Engine, "_begin"),
    "voice": (Heart, "say"),
}
KINDS: dict[str, Callable[[], Exception]] = {
    "error": lambda: RuntimeError("injected"),
    "memory": lambda: torch.OutOfMemoryError("injected: out of memory"),
}

calls: Counter[str] = Counter()
due: dict[str, int] = {}
kind_of: dict[str, str] = {}
gates: dict[str, threading.Semaphore] = {}


def patch(name: str, owner: Any, method: str) -> None:
    """Puts the point's gate and its faults before a method."""
    original = getattr(owner, method)

    def patched(self: Any, *arguments: Any, **options: Any) -> Any:
        calls[name] += 1
        if gate := gates.get(name):
            gate.acquire()
            if name not in gates:
                gate.release()
        if name in due:
            due[name] -= 1
            if due[name] < 0:
                del due[name]
                if kind_of[name] == "nan":
                    result = original(self, *arguments, **options)
                    result[0] = torch.nan
                    return result
                raise KINDS[kind_of[name]]()
        return original(self, *arguments, **options)

    setattr(owner, method, patched)


def with_controls(create_app: Callable[..., FastAPI]) -> Callable[..., FastAPI]:
    """The application with the endpoints above."""

    def create(*arguments: Any) -> FastAPI:
        app = create_app(*arguments)

        @app.post("/break/{name}")
        def break_(name: str, after: int = 0, kind: str = "error") -> None:
            kind_of[name], due[name] = kind, after

        @app.post("/hold/{name}")
        def hold(name: str, after: int = 0) -> None:
            gates[name] = threading.Semaphore(after)

        @app.post("/step/{name}")
        def step(name: str) -> None:
            gates[name].release()

        @app.post("/free/{name}")
        def free(name: str) -> None:
            if gate := gates.pop(name, None):
                gate.release()

        @app.get("/inside")
        def inside() -> dict[str, Any]:
            model = served[-1]
            stats = model.synthesizer.backend.stats() if model.synthesizer else None
            return {
                "running": model.admission.state.running,
                "waiting": model.admission.state.waiting,
                "slots": stats.engine.running if stats else 0,
                "queued": stats.engine.waiting if stats else 0,
                "calls": dict(calls),
                "threads": [thread.name for thread in threading.enumerate() if not thread.name.startswith(POOLS)],
                "files": len(os.listdir("/proc/self/fd")),
                "speaking": sum(thread.name == "speak" for thread in threading.enumerate()),
            }

        return app

    return create


served: list[ServedModel] = []
POOLS = ("asyncio_", "AnyIO worker thread", "plan_", "work_")
"""Threads that are kept for whoever needs one next, so that their number depends on who came when."""


def start(arguments: Sequence[str]) -> int:
    """The server, until a signal ends it."""
    start_model = ServedModel.start

    def remembered(self: ServedModel) -> None:
        served.append(self)
        start_model(self)

    ServedModel.start = remembered  # type: ignore[method-assign]
    application.create_app = with_controls(application.create_app)
    for name, (owner, method) in POINTS.items():
        patch(name, owner, method)
    signal.signal(signal.SIGUSR1, lambda *_: [gates.pop(name).release() for name in list(gates)])
    return main.main(arguments)


if __name__ == "__main__":
    raise SystemExit(start(sys.argv[1:]))
