"""Which web pages may use the server: its own, and those that --cors-origins names.

A browser lets any page open a WebSocket or send a form to any address, localhost included, and only keeps the answer
from it; who asked stands in the headers. Programs that are no browser send no Origin.
"""

from __future__ import annotations

from collections.abc import Mapping

from higgs_server.settings import Settings
from higgs_server.types import SpeechError


class ForeignOrigin(SpeechError):
    """A web page from elsewhere, which nobody has let in."""

    status, code = 403, "foreign_origin"


class Origins:
    """`allowed` are those of --cors-origins, as `https://HOST:PORT`; `*` is all of them."""

    def __init__(self, settings: Settings) -> None:
        self.allowed = [origin.strip() for origin in (settings.cors_origins or "").split(",") if origin.strip()]

    def check(self, headers: Mapping[str, str]) -> None:
        """Raises ForeignOrigin where a page asks that is neither the server's own nor allowed."""
        origin = headers.get("origin")
        if origin is None or "*" in self.allowed or origin in self.allowed:
            return
        # The browser's own word counts where it gives one (HTTPS and localhost): a proxy may have changed Host.
        if headers.get("sec-fetch-site") == "same-origin":
            return
        if origin.partition("://")[2].lower() != headers.get("host", "").lower():
            raise ForeignOrigin(
                f"Pages of {origin[:100]!r} may not use this server unless its --cors-origins has that origin. "
                "If it is the server's own, a proxy in front has to pass Host on.",
                f"来源 {origin[:100]!r} 的网页不能使用本服务，除非 --cors-origins 中有该来源。"
                "若它就是本服务的地址，请让前面的代理原样传递 Host。",
            )
