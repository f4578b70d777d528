"""What can go wrong, at random and for long: an answer that claims to be whole is whole, and nothing is left behind."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from listeners import Listeners, Utterance, listen_all
from make_tiny_checkpoint import make_tiny_checkpoint
from metrics_of import idle_metrics
from server_process import FaultyServer, ServerProcess
from soak.duration import SECONDS

pytestmark = pytest.mark.soak

TEXTS = ("Good morning.", "The ferry leaves at dawn, and nobody sleeps.")
FAULTS = [
    *((name, kind) for name in ("prefill", "decode", "codec") for kind in ("error", "memory")),
    ("prefill", "nan"),
    ("decode", "nan"),
    ("engine", "error"),
]
CLIENT = """
import json, sys, urllib.request
body = json.dumps({"text": "A text that nobody hears to its end. " * 9, "max_new_tokens": 200}).encode()
request = urllib.request.Request(sys.argv[1] + "/generate-stream", body, {"content-type": "application/json"})
while True:
    try:
        urllib.request.urlopen(request).read()
    except urllib.error.HTTPError:
        pass
"""


@contextmanager
def meanwhile(*deeds: tuple[float, object]) -> Iterator[None]:
    """Does each deed again and again, at random up to so many seconds apart."""
    over = threading.Event()
    failures: list[BaseException] = []

    def repeat(apart: float, deed: object) -> None:
        choose = random.Random(apart)
        try:
            while not over.wait(choose.uniform(0, apart)):
                deed(choose)  # type: ignore[operator]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=repeat, args=deed) for deed in deeds]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not failures, failures


def test_faults_in_the_model_and_clients_that_vanish(tmp_path: Path) -> None:
    model = str(make_tiny_checkpoint(tmp_path, seed=4))
    utterances = [Utterance(text, seed, 25, voice) for text in TEXTS for seed in (1, 2) for voice in (None, "belinda")]
    with FaultyServer(["--model-path", model], cwd=tmp_path) as server:
        server.wait_ready()
        listeners = Listeners.taught(server.url, utterances)

        def fault(choose: random.Random) -> None:
            name, kind = choose.choice(FAULTS)
            server.control("break", name, kind=kind)

        def killed(choose: random.Random) -> None:
            client = subprocess.Popen([sys.executable, "-ISc", CLIENT, server.url])
            time.sleep(choose.uniform(0.1, 3))
            client.kill()
            client.wait()

        with meanwhile((3.0, fault), (0.5, killed), (0.7, killed)):
            asyncio.run(listen_all(listeners, 12, SECONDS, impatient=0.3))
        for name, _ in FAULTS:
            server.control("break", name, after=10**9)
        print(
            f"\n{sum(listeners.heard.values())} whole answers, {len(listeners.unfinished)} that failed, "
            f"{listeners.given_up} given up, {listeners.refused} refused"
        )
        assert listeners.wrong == []
        assert sum(listeners.heard.values()) > len(listeners.unfinished)
        server.idle()
        again = Listeners(server.url, listeners.sounds)
        asyncio.run(listen_all(again, 4, 5))
        assert again.wrong == again.unfinished == []
        assert sum(again.heard.values()) > 0
        assert server.stop() == 0


def test_sigterm_at_any_moment(tmp_path: Path) -> None:
    until = time.monotonic() + SECONDS
    choose = random.Random(1)
    utterances = [Utterance(text, 1, 2048, "belinda") for text in TEXTS]
    sounds = None
    rounds = 0
    while time.monotonic() < until:
        rounds += 1
        with ServerProcess(["--model-path", "embedded"], cwd=tmp_path) as server:
            server.wait_ready()
            listeners = Listeners(server.url, sounds) if sounds else Listeners.taught(server.url, utterances)
            sounds = listeners.sounds
            idle_metrics(server.url)
            timer = threading.Timer(choose.uniform(0.2, 2), server.process.send_signal, [signal.SIGTERM])
            timer.start()
            asyncio.run(listen_all(listeners, 6, 3))
            timer.join()
            assert server.process.wait(60) == 0
        # Refused before it began, or whole: nothing that ran was cut off.
        assert listeners.wrong == []
        cut = [line for line in listeners.unfinished if "Connect" not in line and "503" not in line]
        assert cut == [], cut
        assert "Traceback" not in server.log
    print(f"\n{rounds} servers ended")
