"""The composition root: settings in, a listening server out."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from higgs_server import __version__
from higgs_server.logs import set_up_logging
from higgs_server.settings import EMBEDDED, BadSettings, Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger(__name__)


def app() -> FastAPI:
    """The application from the environment's settings: what --reload starts in its child process.

    Settings that cannot be used end that process with a line that says so.
    """
    from higgs_server.server.app import create_app

    try:
        settings = Settings()
        set_up_logging(settings.log_level, settings.log_file, settings.log_format)
        return create_app(settings)
    except BadSettings as error:
        log.error("%s", error)
        raise SystemExit(2) from None


def serve(settings: Settings) -> int:
    """Serves until a signal ends it. Returns the exit status."""
    import uvicorn

    from higgs_server.server.listener import Listener, transport

    set_up_logging(settings.log_level, settings.log_file, settings.log_format)
    log.info("higgs-audio-server %s, model %s", __version__, settings.model_path)
    if settings.model_path == EMBEDDED:
        log.warning("this is the small EMBEDDED voice, not Higgs Audio: it cannot clone voices or follow a scene")
    if settings.open_to_all:
        log.warning("listening on %s without a key: whoever can reach it may use it (--api-key)", settings.host)
    if settings.reload:
        settings.export()
        folder = str(Path(__file__).parent)
        uvicorn.run("higgs_server.main:app", factory=True, reload=True, reload_dirs=[folder], **transport(settings))
        return 0
    from higgs_server.server.app import create_app

    try:
        app = create_app(settings)
    except BadSettings as error:
        log.error("%s", error)
        return 2
    server = Listener(app, settings, app.state.model.stop)
    # Once it has ended, uvicorn raises the signal again that ended it; an ordered end is no failure.
    signal.signal(signal.SIGTERM, lambda *_: None)
    with suppress(KeyboardInterrupt):
        server.run()
    status = 0 if server.started else 1
    if app.state.model.loading:
        # Python's own end takes a thread that is inside a library down with an abort.
        logging.shutdown()
        os._exit(status)
    return status


def main(arguments: Sequence[str] | None = None, program: str = "api_server.py") -> int:
    """`python api_server.py …`."""
    try:
        return serve(Settings.from_cli(sys.argv[1:] if arguments is None else arguments, program=program))
    except KeyboardInterrupt:
        return 130
