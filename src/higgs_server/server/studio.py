"""The studio's files: the page at `/` for browsers, and what it loads from `/studio/`.

Knows nothing of what the page does; it uses the public endpoints like everybody else.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope

STUDIO = Path(__file__).resolve().parents[1] / "studio"

HEADERS = {
    # Everything from here and nothing inline. blob: is sound that was made or recorded on the page.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "permissions-policy": "microphone=(self)",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    # Kept, but asked for each time (ETag): a server of another version must not meet an old page.
    "cache-control": "no-cache",
}

_files = StaticFiles(directory=STUDIO)


def wants_page(accept: str) -> bool:
    """Whether an Accept header is a browser's that opens a page."""
    return "text/html" in accept.lower()


async def file(path: str, scope: Scope) -> Response:
    """A file of the studio, 304 where the client has it. Raises 404, also for what lies outside of the folder."""
    response = await _files.get_response(path, scope)
    response.headers.update(HEADERS)
    return response


def routes() -> APIRouter:
    """The router of what the page loads. The page itself is what `/` answers to browsers (ops.py)."""
    router = APIRouter()

    @router.api_route("/studio/{path:path}", methods=["GET", "HEAD"], include_in_schema=False)
    async def studio(path: str, request: Request) -> Response:
        return await file(path, request.scope)

    return router
