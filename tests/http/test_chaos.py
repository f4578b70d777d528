"""What goes wrong around a server costs the requests concerned and nothing else: afterwards it serves as before.

One server goes through all of it, its log and its temporary files on a disk of 2 MB. `make soak` does it for long.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from answers import generated_samples
from listeners import Listeners, Utterance, listen_all
from metrics_of import idle_metrics
from server_process import ServerProcess

UTTERANCES = [
    Utterance(text, 1, 2048, "belinda") for text in ("Good morning.", "The ferry leaves at dawn, and nobody sleeps.")
]
LONG = {"text": "And then another sentence, which is not short. " * 40, "ref_audio": "belinda"}
READER = """
import socket, sys
reader = socket.create_connection((sys.argv[1], int(sys.argv[2])))
reader.sendall(sys.argv[3].encode())
print(reader.recv(1), flush=True)
while reader.recv(4096): pass
"""


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path | None]:
    """A small disk; None where none can be mounted here."""
    folder = tmp_path_factory.mktemp("disk")
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True)
    if mount.returncode:
        yield None
        return
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def server(disk: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = disk or tmp_path_factory.mktemp("no-disk")
    flags = ["--model-path", "embedded", "--log-format", "json", "--log-file", str(folder / "server.log")]
    with ServerProcess(flags, {"TMPDIR": str(folder)}) as process:
        process.wait_for("ready: embedded")
        yield process


@pytest.fixture(scope="module")
def listeners(server: ServerProcess) -> Listeners:
    return Listeners.taught(server.url, UTTERANCES)


@pytest.fixture(autouse=True)
def serves_as_before(server: ServerProcess, listeners: Listeners) -> Iterator[None]:
    """After each test, unless it ended the server: nothing is in use, and everything sounds as it did."""
    process = psutil.Process(server.process.pid)
    files = process.num_fds()
    yield
    if server.process.poll() is not None:
        return
    idle_metrics(server.url)
    with httpx.Client(base_url=server.url, timeout=120) as client:
        for utterance in UTTERANCES:
            answer = client.post("/generate", json=utterance.native).raise_for_status().json()
            listeners.check(utterance, generated_samples(answer))
    until = time.monotonic() + 60
    while process.num_fds() > files + 2:
        assert time.monotonic() < until, f"{files} open files, then {process.num_fds()}"
        time.sleep(0.05)


def fill_up(file: Path) -> None:
    with file.open("ab", buffering=0) as stream, suppress(OSError):
        while stream.write(bytes(4096)):
            pass


def accessed(log: Path) -> set[str]:
    """The ids of requests that have their line in a log."""
    lines = map(json.loads, log.read_text().splitlines())
    return {line["request_id"] for line in lines if line["logger"] == "higgs_server.access"}


def test_a_full_disk(server: ServerProcess, listeners: Listeners, disk: Path | None) -> None:
    if disk is None:
        pytest.skip("no file system can be mounted here")
    clip = {"ref_audio_file": ("clip.wav", b"\0" * 1_500_000)}
    with httpx.Client(base_url=server.url, timeout=120, headers={"accept-language": "en"}) as client:
        # Python looks once for a temporary folder that it can write to, and stays with it.
        assert client.post("/generate-upload", data={"text": "Hello."}, files=clip).status_code == 415
        fill = disk / "fill"
        fill_up(fill)
        refused = client.post("/generate-upload", data={"text": "Hello."}, files=clip)
        assert refused.status_code == 507
        assert refused.json()["error"]["code"] == "storage_failed"
        # The log's last page has room, and the upload may give some back late: until such a request loses its line.
        until = time.monotonic() + 60
        written, name = True, "while-full"
        while written:
            assert time.monotonic() < until
            name += "-"
            fill_up(fill)
            answer = client.post("/generate", json=UTTERANCES[0].native, headers={"x-request-id": name})
            listeners.check(UTTERANCES[0], generated_samples(answer.json()))
            server.wait_for(rf'"{name}".*/generate')
            written = name in accessed(disk / "server.log")
        fill.unlink()
        assert client.post("/generate-upload", data={"text": "Hello."}, files=clip).status_code == 415
        client.get("/health", headers={"x-request-id": "room-again"})
        server.wait_for("room-again")
    ids = accessed(disk / "server.log")
    assert "room-again" in ids
    assert name not in ids
    assert "server.log cannot be written" in server.log
    assert "lines are missing there" in server.log


def test_clients_that_close_at_any_moment(server: ServerProcess, listeners: Listeners) -> None:
    asyncio.run(listen_all(listeners, 6, 4, impatient=0.7))
    assert listeners.wrong == listeners.unfinished == []
    assert listeners.given_up > 0
    assert "Traceback" not in server.log


def test_clients_that_are_killed(server: ServerProcess) -> None:
    address = httpx.URL(server.url)
    body = json.dumps(LONG)
    head = f"POST /generate-stream HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    arguments = [str(address.host), str(address.port), f"{head}\r\n\r\n{body}"]
    clients = [subprocess.Popen([sys.executable, "-ISc", READER, *arguments], stdout=subprocess.PIPE) for _ in range(6)]
    for client in clients[::2]:  # the others are killed while they wait for their turn
        assert client.stdout
        client.stdout.readline()
    random.Random(1).shuffle(clients)
    for client in clients:
        client.kill()
        client.wait()
        assert client.stdout
        client.stdout.close()
    idle_metrics(server.url)
    assert "Traceback" not in server.log


@contextmanager
def limited(server: ServerProcess, kind: int, value: int) -> Iterator[None]:
    """The server's process with less of something."""
    process = psutil.Process(server.process.pid)
    before = process.rlimit(kind)
    process.rlimit(kind, (value, before[1]))
    try:
        yield
    finally:
        process.rlimit(kind, before)


def test_no_more_files_to_open(server: ServerProcess, listeners: Listeners) -> None:
    address = httpx.URL(server.url)
    process = psutil.Process(server.process.pid)
    with limited(server, resource.RLIMIT_NOFILE, process.num_fds() + 8):
        crowd = [socket.create_connection((str(address.host), address.port or 0)) for _ in range(40)]
        server.wait_for("out of system resource")
        for one in crowd:
            one.close()
        # Still with few: who comes now is served, once the server has tried to accept again.
        answer = httpx.post(f"{server.url}/generate", json=UTTERANCES[0].native, timeout=120)
        listeners.check(UTTERANCES[0], generated_samples(answer.json()))


def test_no_more_memory_to_be_had(server: ServerProcess, listeners: Listeners) -> None:
    process = psutil.Process(server.process.pid)

    def ask(_: int) -> int:
        with httpx.Client(base_url=server.url, timeout=120) as client:
            answer = client.post("/generate", json=LONG)
        assert answer.json()["success"] is (answer.status_code == 200)
        return answer.status_code

    with limited(server, resource.RLIMIT_AS, process.memory_info().vms + 2**20), ThreadPoolExecutor(4) as many:
        statuses = set(many.map(ask, range(4)))
    assert statuses <= {200, 500, 503}


def test_sigterm_in_the_middle_cuts_nobody_off(server: ServerProcess, listeners: Listeners) -> None:
    """The last one here: it ends the server."""

    async def ask(client: httpx.AsyncClient, begun: asyncio.Queue[None]) -> int:
        async with client.stream("POST", "/generate-stream", json=LONG) as answer:
            lines = []
            async for line in answer.aiter_lines():
                if not lines:
                    begun.put_nowait(None)
                lines.append(line)
        return lines.count("data: [DONE]")

    async def all_of_them() -> list[int]:
        begun: asyncio.Queue[None] = asyncio.Queue()
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            first = asyncio.create_task(ask(client, begun))
            await begun.get()
            server.process.send_signal(signal.SIGTERM)
            return await asyncio.gather(first)

    assert asyncio.run(all_of_them()) == [1]
    assert server.process.wait(60) == 0
