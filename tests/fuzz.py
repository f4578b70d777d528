"""Requests that nobody would write by hand: from the OpenAPI document, as raw forms, and as WebSocket messages.

Each function asks a running server `examples` times and raises at the first answer that is no answer: a 5xx, one that
the document does not describe, a connection that hangs or breaks.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import positive_data_acceptance
from schemathesis.specs.openapi.checks import ignored_auth
from websockets.exceptions import ConnectionClosed

from conversing import connected

REFUSED = {400, 401, 404, 413, 415, 422}
SECONDS = 60.0
WAV = bytes.fromhex("524946462400000057415645666d74201000000001000100c05d000080bb0000020010006461746100000000")


def _settings(examples: int, derandomize: bool) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=derandomize,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, *([] if derandomize else [Phase.shrink])],
    )


def fuzz_document(url: str, examples: int, *, derandomize: bool) -> set[tuple[str, int]]:
    """Every operation of the OpenAPI document, with bodies as it says and with others. Gives (operation, status) seen.

    Answers match the document: status, content type, headers, schema. A body that it allows may be refused all the
    same: it cannot say which voices there are.
    """
    seen: set[tuple[str, int]] = set()
    for result in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations():
        operation = result.ok()
        # A path's parameter is text, and no text is of the wrong type.
        can_be_wrong = bool(operation.body or operation.query)
        for mode in [GenerationMode.POSITIVE, *([GenerationMode.NEGATIVE] if can_be_wrong else [])]:

            @_settings(examples, derandomize)
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: schemathesis.Case) -> None:
                answer = case.call(timeout=SECONDS)
                seen.add((case.operation.label, answer.status_code))
                case.validate_response(answer, excluded_checks=[positive_data_acceptance, ignored_auth])

            ask()
    return seen


_NAMES = st.sampled_from(
    ["text", "ref_audio_file", "ref_text", "ref_text_file", "temperature", "top_p", "max_new_tokens", "seed", "x"]
) | st.text(max_size=8)
_VALUES = st.sampled_from([b"", b"Hello.", b"0.5", b"-1", b"nan", b"1e999", WAV, WAV[:20]]) | st.binary(max_size=60)
_GOOD = st.sampled_from([("temperature", b"0.5"), ("seed", b"7"), ("max_new_tokens", b"9"), ("ref_text", b"Hi.")])


@st.composite
def _form(draw: st.DrawFn) -> tuple[str, bytes]:
    """A multipart content type and body, whole or broken in one of the ways in which bodies break."""
    boundary = draw(st.sampled_from(["b", "-" * 70, "b b", "é"]))
    body = b""
    parts = draw(st.lists(_GOOD if draw(st.booleans()) else st.tuples(_NAMES, _VALUES) | _GOOD, max_size=5))
    for name, value in [("text", b"Hello."), *parts] if draw(st.booleans()) else parts:
        file = draw(st.sampled_from([b""] * 4 + [b'; filename="a.wav"', b'; filename=""', b"; filename*=UTF-8''%e2"]))
        kind = draw(st.sampled_from([b""] * 4 + [b"\r\nContent-Type: audio/wav", b"\r\nContent-Encoding: x"]))
        head = b'Content-Disposition: form-data; name="' + name.encode("utf-8", "replace") + b'"' + file + kind
        line = draw(st.sampled_from([b"\r\n\r\n"] * 9 + [b"\r\n", b"\n\n"]))
        body += b"--" + boundary.encode() + b"\r\n" + head + line + value + b"\r\n"
    body += draw(st.sampled_from([b"--" + boundary.encode() + b"--\r\n"] * 3 + [b"--", b""]))
    if body and draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(body) - 1))
        body = body[:at] + draw(st.binary(max_size=3)) + body[at + draw(st.integers(0, 9)) :]
    quoted = draw(st.sampled_from([f'boundary="{boundary}"'] * 4 + [f"boundary={boundary}", "", "boundary="]))
    return f"multipart/form-data;{quoted}", body


def fuzz_forms(url: str, examples: int, *, derandomize: bool) -> set[int]:
    """Raw bodies for `/generate-upload`. Gives the statuses seen."""
    seen: set[int] = set()
    with httpx.Client(base_url=url, timeout=SECONDS) as client:

        @_settings(examples, derandomize)
        @given(form=_form(), declared=st.booleans())
        def ask(form: tuple[str, bytes], declared: bool) -> None:
            kind, body = form
            content: Any = body if declared else iter([body[:7], body[7:]])
            answer = client.post("/generate-upload", content=content, headers={"content-type": kind.encode("utf-8")})
            seen.add(answer.status_code)
            assert answer.status_code == 200 or answer.status_code in REFUSED, answer.text
            assert answer.json()["success"] is (answer.status_code == 200)

        ask()
    return seen


_CONFIG = st.fixed_dictionaries(
    {"type": st.just("session.config")},
    optional={
        "response_format": st.sampled_from(["pcm", "wav", "mp3", "opus", "zip", None, 7]),
        "voice": st.sampled_from(["belinda", "nobody", {"id": "belinda"}, [], "../x", None]),
        "speed": st.sampled_from([1.0, 0.25, 4, 9, -1, "1", None]),
        "max_new_tokens": st.sampled_from([1, 20, 0, "9"]),
        "x": st.none() | st.text(max_size=4),
    },
)
_TEXTS = st.sampled_from(
    ["Hi. ", "Hello", ". Yes. ", "", "\ud800", "\x00", "[SPEAKER0] a", "[SPEAKER3] b. "]
) | st.text(max_size=12)
_MESSAGE = (
    _CONFIG
    | st.fixed_dictionaries({"type": st.just("input.text"), "text": _TEXTS})
    | st.fixed_dictionaries({"type": st.just("input.text")}, optional={"text": st.none() | st.integers()})
    | st.fixed_dictionaries({"type": st.sampled_from(["input.done", "session.close", "", "nonsense"]) | st.none()})
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)
    )
)
_FRAME = _MESSAGE.map(json.dumps) | st.sampled_from(["", "{", "[" * 5_000, b"\x00\xff", b"{}"]) | st.text(max_size=20)


def fuzz_messages(url: str, examples: int, *, derandomize: bool) -> set[str]:
    """Sessions of `/v1/audio/speech/stream`. Gives the types of messages seen.

    Each session ends: with `session.done` once all text was said, or by being closed in order.
    """
    seen: set[str] = set()

    @_settings(examples, derandomize)
    @given(frames=st.lists(_FRAME, max_size=8))
    def talk(frames: list[str | bytes]) -> None:
        with connected(url, open_timeout=SECONDS, close_timeout=SECONDS) as socket:
            try:
                for frame in frames:
                    socket.send(frame.encode("utf-8", "replace").decode() if isinstance(frame, str) else frame)
                socket.send('{"type": "input.done"}')
                while True:
                    answer = socket.recv(timeout=SECONDS)
                    if isinstance(answer, str):
                        seen.add(json.loads(answer)["type"])
            except ConnectionClosed as closed:
                if closed.rcvd is None or closed.rcvd.code != 1000:
                    raise AssertionError("the session did not end in order") from closed

    talk()
    return seen
