"""The engine over there: its address, what it says of itself, and how it is asked. Knows no script and no sound.

http.client in the thread that speaks: a cancellation shuts the socket, which nothing asynchronous would make simpler.
"""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from higgs_server.types import Cancellation, Feature, InvalidRequest, LoadError, NotReady, SpeechError

CONNECT_SECONDS = 10.0
SILENT_SECONDS = 120.0
"""How long the engine may send nothing: before the first sound it has a queue and a long prompt to work off."""
_MOST_OF_AN_ERROR = 2**16


@dataclass(frozen=True, slots=True)
class Told:
    """What an engine said of itself."""

    model: str
    voices: tuple[str, ...]
    features: frozenset[Feature]
    max_new_tokens: int | None = None
    """Its cap, where it told."""
    like_this_one: bool = False
    """It is a server like this one, and takes what only we have: scenes, and speakers that it chooses voices for."""

    @property
    def any_voice(self) -> str:
        """SGLang-Omni wants a voice named in every request, vLLM-Omni one that the model has."""
        return self.voices[0] if self.voices and "default" not in self.voices else "default"


class Upstream:
    """The engine's address, and how it is asked."""

    def __init__(self, url: str, key: str | None) -> None:
        """Raises LoadError for what is no address."""
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise LoadError(f"{url} is no address: http://HOST:PORT.", f"{url} 不是有效地址，应为 http://主机:端口。")
        if parts.username is not None:
            raise LoadError(
                "Addresses are shown and logged: give the engine's key with --remote-api-key, not in --model-path.",
                "地址会被显示并写入日志：请用 --remote-api-key 提供密钥，不要写在 --model-path 里。",
            )
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, port
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        self._key = key
        self.address = f"{parts.scheme}://{parts.netloc}{self._prefix}"

    def describe(self) -> Told:
        """Its model, its voices and what it takes. Raises NotReady where waiting may help, LoadError where not."""
        own = self._get("/info", optional=True)
        if own is None or "supported_features" not in own:
            own = None
        elif own.get("status") == "failed":
            raise LoadError(f"The engine at {self.address} has no model.", f"{self.address} 的引擎没有可用模型。")
        elif not own.get("is_loaded"):
            raise NotReady(f"The engine at {self.address} is loading.", f"{self.address} 的引擎正在加载。")
        models = (self._get("/v1/models") or {}).get("data") or [{}]
        model = str(models[0].get("id", "default"))
        listed = (self._get("/v1/audio/voices", optional=True) or {}).get("voices") or []
        names = (voice.get("id") or voice.get("name") if isinstance(voice, dict) else voice for voice in listed)
        voices = tuple(str(name) for name in names if name)
        if own is not None:
            known = {str(feature) for feature in Feature}
            features = frozenset(Feature(name) for name in own["supported_features"] if name in known)
            return Told(model, voices, features, int(own["max_new_tokens"]), like_this_one=True)
        features = frozenset({Feature.SINGLE_SPEAKER, Feature.STREAMING})
        if '"ref_audio"' in json.dumps(self._get("/openapi.json", optional=True)):
            features |= {Feature.VOICE_CLONING, Feature.MULTI_SPEAKER}
        return Told(model, voices, features)

    @contextmanager
    def post(self, path: str, body: dict[str, Any], cancellation: Cancellation) -> Iterator[HTTPResponse]:
        """The answer to a JSON body, its head read. A cancellation closes the connection. Raises SpeechError."""
        with self._connected(cancellation) as connection:
            yield self._ask(connection, "POST", path, json.dumps(body).encode())

    def _get(self, path: str, *, optional: bool = False) -> dict[str, Any] | None:
        with self._connected(Cancellation()) as connection:
            try:
                answer = json.loads(self._ask(connection, "GET", path).read())
            except InvalidRequest as error:
                if optional:
                    return None
                raise LoadError(str(error), error.zh) from None
            except ValueError:
                answer = None
        if not isinstance(answer, dict):
            if optional:
                return None
            raise LoadError(
                f"What answers at {self.address} is no speech engine: {path} is no JSON object.",
                f"{self.address} 不是语音引擎：{path} 返回的不是 JSON 对象。",
            )
        return answer

    @contextmanager
    def _connected(self, cancellation: Cancellation) -> Iterator[HTTPConnection]:
        connection: HTTPConnection = (
            HTTPSConnection(self._host, self._port, timeout=CONNECT_SECONDS, context=ssl.create_default_context())
            if self._secure
            else HTTPConnection(self._host, self._port, timeout=CONNECT_SECONDS)
        )
        try:
            connection.connect()
            sock = connection.sock
            sock.settimeout(SILENT_SECONDS)

            def hang_up() -> None:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

            cancellation.on_cancel(hang_up)
            yield connection
        except (OSError, HTTPException) as error:
            cancellation.check()
            raise NotReady(
                f"The engine at {self.address} does not answer ({_reason(error)}).",
                f"{self.address} 的引擎没有响应（{_reason(error)}）。",
                retry_after=5,
            ) from None
        finally:
            connection.close()

    def _ask(self, connection: HTTPConnection, method: str, path: str, body: bytes | None = None) -> HTTPResponse:
        headers = {"Accept": "*/*", "Content-Type": "application/json"} if body else {}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        connection.request(method, self._prefix + path, body, headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise self._refusal(answer)
        return answer

    def _refusal(self, answer: HTTPResponse) -> SpeechError:
        said = _message(answer.read(_MOST_OF_AN_ERROR)) or answer.reason
        where = f"The engine at {self.address}"
        if answer.status in (401, 403):
            return LoadError(
                f"{where} wants a key, or another one: start with --remote-api-key.",
                f"{self.address} 的引擎需要密钥或密钥有误：请使用 --remote-api-key。",
            )
        if answer.status == 429 or answer.status >= 500:
            wait = answer.headers.get("Retry-After", "")
            return NotReady(
                f"{where} cannot speak at present ({answer.status}): {said}",
                f"{self.address} 的引擎暂时不可用（{answer.status}）：{said}",
                retry_after=int(wait) if wait.isdecimal() else 5,
            )
        return InvalidRequest(
            f"{where} refused ({answer.status}): {said}", f"{self.address} 的引擎拒绝了请求（{answer.status}）：{said}"
        )


def _message(body: bytes) -> str:
    """What an error's body says: OpenAI's envelope, FastAPI's detail, or nothing."""
    try:
        answer = json.loads(body)
        error = answer.get("error")
        said = (
            error.get("message") if isinstance(error, dict) else error or answer.get("message") or answer.get("detail")
        )
    except (ValueError, AttributeError):
        return ""
    return said if isinstance(said, str) else json.dumps(said, ensure_ascii=False) if said else ""


def _reason(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
