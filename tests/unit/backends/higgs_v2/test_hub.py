"""Against a hub of our own on this machine: what huggingface_hub really does, without the network."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

from higgs_server.backends.higgs_v2.hub import LANGUAGE_MODEL_FILES, resolve
from higgs_server.types import LoadError

MODEL = "someone/small-model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": b'{"model_type": "x"}', "model.safetensors": bytes(range(256)) * 4000, "README.md": b"# no"}


class Hub(BaseHTTPRequestHandler):
    """The four questions that a download asks."""

    refusal: tuple[int, str] | None = None

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if self.refusal:
            status, code = self.refusal
            self.answer(b"{}", status, {"X-Error-Code": code, "X-Error-Message": code})
        elif path.startswith(f"/api/models/{MODEL}/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in FILES.items()
            ]
            self.answer(json.dumps(tree).encode())
        elif path.startswith(f"/api/models/{MODEL}"):
            siblings = [{"rfilename": name} for name in FILES]
            self.answer(json.dumps({"id": MODEL, "sha": COMMIT, "siblings": siblings, "tags": []}).encode())
        elif (name := path.rpartition("/")[2]) in FILES:
            etag = hashlib.sha1(FILES[name]).hexdigest()
            self.answer(FILES[name], headers={"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        else:
            self.answer(b"{}", 404)

    do_HEAD = do_GET

    def answer(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    handler = type("OneHub", (Hub,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_downloads_what_a_model_is_made_of_and_tells_how_far_it_is(hub: type[Hub]) -> None:
    seen: list[float] = []
    folder = resolve(MODEL, LANGUAGE_MODEL_FILES, progress=lambda _, done: seen.append(done))
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert all((folder / name).read_bytes() == FILES[name] for name in ("config.json", "model.safetensors"))
    assert seen
    assert seen[-1] == 1.0


def test_what_was_downloaded_is_used_when_the_hub_is_gone(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = resolve(MODEL, LANGUAGE_MODEL_FILES)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    assert resolve(MODEL, LANGUAGE_MODEL_FILES) == folder
    assert time.monotonic() - began < 5
    (folder / "model.safetensors").unlink()
    with pytest.raises(LoadError, match="no whole copy"):
        resolve(MODEL, LANGUAGE_MODEL_FILES)


def test_an_unreachable_hub_is_told_at_once(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(LoadError, match="cannot be reached") as error:
        resolve(MODEL, LANGUAGE_MODEL_FILES, flag="--audio-tokenizer-path")
    assert time.monotonic() - began < 5
    assert error.value.code == "hub_unreachable"
    assert "--audio-tokenizer-path" in str(error.value)
    assert "--model-path embedded" in str(error.value)


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, "RepoNotFound", "no model someone/small-model"),
        (401, "RepoNotFound", "no model someone/small-model"),
        (403, "GatedRepo", "licence"),
        (404, "RevisionNotFound", "no revision v9"),
    ],
)
def test_each_refusal_says_what_to_do(hub: type[Hub], status: int, code: str, message: str) -> None:
    hub.refusal = (status, code)
    with pytest.raises(LoadError, match=message) as error:
        resolve(MODEL, LANGUAGE_MODEL_FILES, revision="v9")
    assert error.value.zh != str(error.value)


def test_folders_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve(str(tmp_path), LANGUAGE_MODEL_FILES) == tmp_path
    (tmp_path / "file").write_text("")
    with pytest.raises(LoadError, match="is a file"):
        resolve(str(tmp_path / "file"), LANGUAGE_MODEL_FILES)
    for nothing in (str(tmp_path / "none"), "none", "./a/b", "a/b/c", "../x"):
        with pytest.raises(LoadError, match="There is no folder"):
            resolve(nothing, LANGUAGE_MODEL_FILES)
