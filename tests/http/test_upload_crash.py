"""kill -9 while voices are written: afterwards each is whole, and either as before or as asked for."""

from __future__ import annotations

import random
import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from higgs_server.audio import wav
from higgs_server.audio.decode import decode
from higgs_server.audio.recording import tidy
from higgs_server.library.voices import VoiceLibrary
from hostile_clips import speech
from server_process import ServerProcess

VOICES = "/v1/audio/voices"
KILLS = 5
State = tuple[bytes, str] | None
"""A voice's recording and transcript, None where there is none."""


def version(number: int) -> tuple[bytes, bytes]:
    """A clip that is unlike all others, as it is sent and as it is kept."""
    sent = wav.encode(speech()[: 72_000 + 240 * number] * np.float32(0.5))
    return sent, wav.encode(tidy(decode(sent).samples))


VERSIONS = [version(number) for number in range(40)]


class Writer:
    """Uploads, replaces, renames and removes one voice until the server is gone, and knows what may be left of it."""

    def __init__(self, name: str, client: httpx.Client, state: dict[str, State], answers: threading.Semaphore) -> None:
        self.names = (f"{name} one", f"{name} two")
        self.client = client
        self.answers = answers
        self.state = state
        """What the last answer said."""
        self.next: dict[str, State] = state
        """What the request under way asks for."""
        self.random = random.Random(name)

    def run(self) -> None:
        while True:
            answer = self._step()
            if answer is None:
                return
            assert answer.status_code in (200, 201), answer.text
            self.state = self.next
            self.answers.release()

    def _step(self) -> httpx.Response | None:
        name = next((name for name in self.names if self.state.get(name)), self.names[0])
        path = f"{VOICES}/{name}"
        chance = self.random.random()
        number = self.random.randrange(len(VERSIONS))
        sent, kept = VERSIONS[number]
        held = self.state.get(name)
        try:
            if held is None or chance < 0.6:
                self.next = {**self.state, name: (kept, f"{number} {number}")}
                return self.client.post(
                    f"{VOICES}?replace=true&force=true",
                    data={"name": name, "ref_text": f"{number} {number}"},
                    files={"audio_sample": ("clip.wav", sent)},
                )
            if chance < 0.8:
                other = self.names[1 - self.names.index(name)]
                self.next = {name: None, other: held}
                return self.client.patch(path, json={"name": other})
            if chance < 0.9:
                self.next = {**self.state, name: (held[0], "changed")}
                return self.client.patch(path, json={"ref_text": "changed"})
            self.next = {**self.state, name: None}
            return self.client.delete(path)
        except httpx.TransportError:
            return None


def kept(folder: Path) -> dict[str, State]:
    """What a new process finds."""
    library = VoiceLibrary(folder)
    voices = [library.get(voice.name) for voice in library.list()]
    return {voice.name: (voice.recording or b"", voice.transcript or "") for voice in voices}


def test_kill_9_at_any_moment_leaves_the_library_whole(tmp_path: Path) -> None:
    folder = tmp_path / "voices"
    # No model is needed to keep voices, and none is loaded.
    arguments = ["--model-path", str(tmp_path / "no model"), "--voice-prompts-dir", str(folder)]
    chance = random.Random(5)
    states: dict[str, dict[str, State]] = {name: {} for name in "abcd"}
    for _ in range(KILLS):
        with ServerProcess(arguments, cwd=tmp_path) as server, httpx.Client(base_url=server.url, timeout=60) as client:
            listed = {voice["name"]: voice for voice in client.get(VOICES).raise_for_status().json()["voices"]}
            found: dict[str, Any] = {name: state for part in states.values() for name, state in part.items() if state}
            assert {name: voice["transcript"] for name, voice in listed.items()} == {
                name: words for name, (_, words) in found.items()
            }
            answers = threading.Semaphore(0)
            writers = [Writer(name, client, state, answers) for name, state in states.items()]
            threads = [threading.Thread(target=writer.run) for writer in writers]
            for thread in threads:
                thread.start()
            for _ in range(chance.randrange(5, 15)):
                assert answers.acquire(timeout=60)
            threading.Event().wait(chance.uniform(0, 0.05))
            server.stop(signal.SIGKILL)
            for thread in threads:
                thread.join(60)
        now = kept(folder)
        known = set()
        for name, writer in zip(states, writers, strict=True):
            mine = {voice: now[voice] for voice in writer.names if voice in now}
            before = {voice: state for voice, state in writer.state.items() if state}
            after = {voice: state for voice, state in writer.next.items() if state}
            assert mine in (before, after)
            states[name] = dict(mine)
            known |= set(mine)
        assert set(now) == known
    # Whoever writes next clears away what was left.
    VoiceLibrary(folder).put("last", b"clip", None)
    assert not [file for file in folder.iterdir() if file.suffix not in (".wav", ".txt") and file.name != ".lock"]
