"""Errors as HTTP answers: a true status and a body that says what to do, in the language of the client."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from higgs_server.server.callers import Unauthorized
from higgs_server.server.streaming import ClientGone
from higgs_server.telemetry import current_request
from higgs_server.types import InvalidRequest, Problem, SpeechError, UnfitRecording, invalid_request

log = logging.getLogger(__name__)

OPENAI_PREFIX = "/v1/"
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}


class HeadersTooLarge(SpeechError):
    """More headers, or longer ones, than any client of this API needs."""

    status, code = 431, "headers_too_large"


class WrongContentType(SpeechError):
    """A body in a format the endpoint does not read."""

    status, code = 415, "wrong_content_type"


class MalformedBody(SpeechError):
    """A body that is not what its content type says."""

    status, code = 400, "malformed_body"


def prefers_english(headers: Mapping[str, str]) -> bool:
    """Whether Accept-Language ranks English above Chinese (RFC 9110, 12.5.4). Without it messages are Chinese."""
    ranks = {"en": 0.0, "zh": 0.0}
    for item in headers.get("accept-language", "").lower().split(","):
        tag, _, quality = item.partition(";")
        try:
            weight = float(quality.strip().removeprefix("q=")) if quality.strip() else 1.0
        except ValueError:
            continue
        primary = tag.strip().split("-")[0]
        if primary in ranks:
            ranks[primary] = max(ranks[primary], weight)
    return ranks["en"] > ranks["zh"]


def said(headers: Mapping[str, str], english: str, chinese: str) -> str:
    """What is said in the client's language."""
    return english if prefers_english(headers) else chinese


def message_for(error: SpeechError, headers: Mapping[str, str]) -> str:
    """The error's sentence in the client's language."""
    return said(headers, str(error), error.zh)


def error_body(error: SpeechError, headers: Mapping[str, str]) -> dict[str, Any]:
    """The body of every native error."""
    english = prefers_english(headers)
    return {
        "success": False,
        "message": message_for(error, headers),
        "error": {"code": error.code, "param": error.param, **_problems(error, english=english)},
    }


def openai_error_body(error: SpeechError) -> dict[str, Any]:
    """The body of every error under /v1, always in English, as OpenAI has it."""
    kind = _OPENAI_TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    # What our own API calls text is OpenAI's input.
    param = "input" if error.param == "text" else error.param
    found = {"message": str(error), "type": kind, "param": param, "code": error.code}
    return {"error": {**found, **_problems(error, english=True)}}


def _problems(error: SpeechError, *, english: bool) -> dict[str, Any]:
    if not isinstance(error, UnfitRecording):
        return {}
    return {"problems": [problem_body(problem, english=english) for problem in error.problems]}


def problem_body(problem: Problem, *, english: bool) -> dict[str, str]:
    """A problem of a recording, as errors and warnings list it."""
    message, advice = (problem.message, problem.advice) if english else (problem.zh_message, problem.zh_advice)
    return {"code": problem.code, "message": message, "advice": advice}


def error_response(error: SpeechError, headers: Mapping[str, str], path: str) -> JSONResponse:
    """Status, headers and body of an error, in the envelope of the API that `path` belongs to."""
    extra: dict[str, str] = {}
    if error.retry_after is not None:
        extra["Retry-After"] = str(error.retry_after)
    if isinstance(error, Unauthorized):
        extra["WWW-Authenticate"] = "Bearer"
    if not path.startswith(OPENAI_PREFIX):
        return JSONResponse(error_body(error, headers), error.status, extra)
    if error.retry_after is None:
        extra["x-should-retry"] = "false"
    # OpenAI's API knows no 422 for a wrong field, and its clients treat it as 400.
    status = 400 if error.status == 422 and not isinstance(error, UnfitRecording) else error.status
    return JSONResponse(openai_error_body(error), status, extra)


def unexpected(error: Exception) -> SpeechError:
    """What a client may know of a bug: nothing but that it is in the log."""
    log.error("unexpected error", exc_info=error)
    return SpeechError("Something went wrong here; the server's log says what.", "服务器内部错误，详见服务器日志。")


def as_speech_error(error: Exception) -> SpeechError:
    """Any exception of an endpoint as one that can be shown; the request's record knows of it from here on."""
    found = current_request.get().error = _shown(error)
    return found


def _shown(error: Exception) -> SpeechError:
    if isinstance(error, SpeechError):
        return error
    if isinstance(error, RequestValidationError):
        return invalid_request(error.errors()[0])
    if isinstance(error, HTTPException):
        detail = str(error.detail)
        found = InvalidRequest(detail, code=_HTTP_CODES.get(error.status_code, "invalid_request"))
        found.status = error.status_code
        return found
    return unexpected(error)


def install(app: FastAPI) -> None:
    """Every error of every endpoint leaves through here."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        response = error_response(as_speech_error(error), request.headers, request.url.path)
        if isinstance(error, HTTPException) and error.headers:
            response.headers.update(error.headers)  # a 405 tells the methods that there are
        return response

    async def nobody(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it; the log line says what happened

    app.add_exception_handler(ClientDisconnect, nobody)  # while the body was read
    app.add_exception_handler(ClientGone, nobody)
    for kind in (SpeechError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, answer)
