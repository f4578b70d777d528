"""The model behind the port: loading, ready or failed. The port answers meanwhile; `/ready` tells which it is."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

from higgs_server.backends import USE_EMBEDDED
from higgs_server.server.admission import Admission, before_deadline
from higgs_server.settings import EMBEDDED, Settings
from higgs_server.synthesizer import Synthesizer
from higgs_server.telemetry import current_request, progress_bar
from higgs_server.types import LoadError, NotReady, SpeechError

log = logging.getLogger(__name__)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

SPEAKING = "speak"
"""The name of the threads that perform scripts (streaming.py)."""
PLANNED_AT_ONCE = 16
"""Clips that are decoded and encoded at the same time; a model encodes one after another."""
LAST_STEP_SECONDS = 10.0
"""How long one is waited for at the end: it stops after the step or the sentence it is at."""


@dataclass(frozen=True, slots=True)
class LoadState:
    """A moment of loading. `fraction` is 0 to 1."""

    status: str = "loading"
    stage: str = "starting"
    fraction: float = 0.0
    error: SpeechError | None = None


class ServedModel:
    """Loads one model in a thread of its own. `admission` says who may use it now."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._synthesizer: Synthesizer | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._loading = LoadState()
        self._loader = threading.Thread(target=self._load, name="load-model", daemon=True)
        self.admission = Admission(settings.max_waiting)
        # Not those of everybody: sound that is on its way needs them, and one clip waits for another.
        self._planners = ThreadPoolExecutor(PLANNED_AT_ONCE, thread_name_prefix="plan")
        self._planning = Admission()
        self._planning.max_running = PLANNED_AT_ONCE
        self.stopping = asyncio.Event()
        """The server finishes what it has begun, and ends."""

    def start(self) -> None:
        """Begins to load; returns at once."""
        self._loader.start()

    def get(self) -> Synthesizer:
        """The loaded model. Raises NotReady (503): with Retry-After where waiting helps, else with the way out."""
        error = self._trouble or self._loading.error
        if error is not None:
            raise NotReady(str(error), error.zh, code=error.code, retry_after=error.retry_after)
        if self._synthesizer is not None:
            return self._synthesizer
        state = self._loading
        percent = f"{state.fraction:.0%}"
        raise NotReady(
            f"The model is loading ({state.stage}, {percent}). Try again in a few seconds.",
            f"模型正在加载（{percent}），请稍后重试。",
            retry_after=2 if self._settings.model_path == EMBEDDED else 10,
        )

    async def plan(
        self, call: Callable[Arguments, Result], *arguments: Arguments.args, **options: Arguments.kwargs
    ) -> Result:
        """What `call` returns, off the event loop: whatever comes before an utterance's turn and may take a while.

        In turns of its own, as fair as those. Raises Overloaded and DeadlineExceeded. Whoever is cancelled before it
        begins is not worked for.
        """
        record = current_request.get()
        work = partial(contextvars.copy_context().run, call, *arguments, **options)
        async with self._planning.turn(record), before_deadline(record):
            return await asyncio.get_running_loop().run_in_executor(self._planners, work)

    @property
    def state(self) -> LoadState:
        """Whether it can speak, else why not: it loads, cannot be had, is broken for the moment, or the server ends."""
        if self.stopping.is_set():
            return LoadState("failed", "stopping", 1.0, NotReady("The server is about to end.", "服务即将停止。"))
        return self._loading if self._trouble is None else LoadState("failed", "engine", 1.0, self._trouble)

    @property
    def _trouble(self) -> SpeechError | None:
        return None if self._synthesizer is None else self._synthesizer.backend.trouble()

    @property
    def synthesizer(self) -> Synthesizer | None:
        """The loaded model, None until then."""
        return self._synthesizer

    @property
    def loading(self) -> bool:
        """Whether the thread that loads it runs, which nothing can end but the end of the process."""
        return self._loader.is_alive()

    def stop(self) -> None:
        """The server is about to end: nobody should begin anything here."""
        self.stopping.set()

    def close(self) -> None:
        """Frees the model, also one that is still loading."""
        with self._lock:
            self._closed = True
            synthesizer, self._synthesizer = self._synthesizer, None
        if synthesizer is not None:
            synthesizer.close()
            # Whoever is inside a network when Python ends takes the process down with an abort.
            for thread in threading.enumerate():
                if thread.name == SPEAKING:
                    thread.join(LAST_STEP_SECONDS)

    def _load(self) -> None:
        name = self._settings.model_path
        try:
            with progress_bar(f"loading {name}") as show:

                def report(stage: str, fraction: float) -> None:
                    self._loading = LoadState("loading", stage, fraction)
                    show(stage, fraction)

                synthesizer = Synthesizer.load(self._settings.load_options(), self._settings, report)
        except SpeechError as error:
            self._fail(error)
            return
        except MemoryError:
            self._fail(LoadError(f"There is not enough memory for {name}.", f"内存不足，无法加载 {name}。"))
            return
        except Exception as error:
            log.exception("loading %s failed", name)
            self._fail(
                LoadError(
                    f"{name} could not be loaded ({type(error).__name__}); the log says more.",
                    f"无法加载 {name}（{type(error).__name__}），详见日志。",
                )
            )
            return
        with self._lock:
            closed = self._closed
            if not closed:
                self.admission.max_running = synthesizer.backend.info.max_running
                # Who has a place to speak has one to be read.
                self._planning.max_waiting = self.admission.max_running + self.admission.state.max_waiting
                self._synthesizer = synthesizer
        if closed:
            synthesizer.close()
            return
        self._loading = LoadState("ready", "ready", 1.0)
        info = synthesizer.backend.info
        log.info("ready: %s on %s (%s)", info.name, info.device, info.dtype)
        if info.note:
            log.warning("%s", info.note)

    def _fail(self, error: SpeechError) -> None:
        if EMBEDDED not in str(error) and self._settings.model_path != EMBEDDED:
            error = LoadError(
                f"{error} Meanwhile the embedded voice speaks: `{USE_EMBEDDED}`.",
                f"{error.zh}可先用内置语音：`{USE_EMBEDDED}`。",
                code=error.code,
            )
        self._loading = LoadState("failed", "failed", self._loading.fraction, error)
        log.error("no model: %s", error)
