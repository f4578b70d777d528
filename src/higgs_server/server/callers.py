"""Who calls, and how much each may: API keys, requests a minute, requests at the same time.

Knows headers and addresses, and nothing of what is asked for.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from higgs_server.settings import BadSettings, Settings
from higgs_server.types import SpeechError

log = logging.getLogger(__name__)

_MOST_REMEMBERED = 10_000
"""Callers whose rate is kept in mind before those who have been quiet are forgotten."""


class Unauthorized(SpeechError):
    """No key, or a wrong one."""

    status, code = 401, "unauthorized"


class RateLimited(SpeechError):
    """More requests than this caller may send."""

    status, code = 429, "rate_limit"


class Callers:
    """Belongs to the event loop. A caller goes by the name of its key, without keys by its address."""

    def __init__(self, settings: Settings) -> None:
        """Raises BadSettings where the file of keys cannot be used, or a flag gives none."""
        given = settings.api_key.get_secret_value() if settings.api_key else ""
        self._flag_keys = [key.strip() for key in given.split(",") if key.strip()]
        if given and not self._flag_keys:
            raise BadSettings("--api-key has no key in it.", "--api-key 中没有密钥。", param="api_key")
        self._file = settings.api_key_file
        self._written: int | None = None
        self._complained = False
        self._names: dict[bytes, str] = {}
        """By digest of the key."""
        self._read_keys()
        self._rate = settings.rate_limit
        self._most = settings.max_concurrent
        self._next: dict[str, float] = {}
        """When a caller's next request would be due if it sent them evenly: ahead of now by what it has used up."""
        self._active: Counter[str] = Counter()

    def name(self, headers: Mapping[str, str], address: str) -> str:
        """The caller's name. Raises Unauthorized where there are keys and the request has none of them."""
        self._read_keys()
        if not self._names:
            return address
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        key = bearer.strip(" ") if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        # Headers come decoded as Latin-1: browsers write them so where they can, other clients in UTF-8.
        raw, read = _digest(key.encode("latin-1")), _digest(key.encode())
        found = None
        for digest, name in self._names.items():  # all of them: how long it takes tells nothing
            if hmac.compare_digest(digest, raw) | hmac.compare_digest(digest, read):
                found = name
        if found is None:
            raise Unauthorized(
                "This server asks for a key: send `Authorization: Bearer KEY` or `X-API-Key: KEY`.",
                "本服务需要密钥：请发送 `Authorization: Bearer 密钥` 或 `X-API-Key: 密钥`。",
            )
        return found

    def count(self, caller: str) -> None:
        """One more request of the caller's minute. Raises RateLimited when they are used up."""
        if self._rate is None:
            return
        now, interval = time.monotonic(), 60 / self._rate
        due = max(now, self._next.get(caller, now))
        # A whole minute's worth may come at once; then each interval brings one.
        wait = due + interval - now - 60
        if wait > 1e-6:
            raise RateLimited(
                f"You may send {self._rate} requests a minute.",
                f"每分钟最多 {self._rate} 个请求。",
                retry_after=math.ceil(wait),
            )
        self._next[caller] = due + interval
        if len(self._next) > _MOST_REMEMBERED:
            self._next = {caller: due for caller, due in self._next.items() if due > now}

    @contextmanager
    def at_once(self, caller: str) -> Iterator[None]:
        """One of the requests a caller may have at the same time. Raises RateLimited when there are as many already."""
        if self._most is not None and self._active[caller] >= self._most:
            raise RateLimited(
                f"You may have {self._most} requests at the same time: wait until one is answered.",
                f"同时最多 {self._most} 个请求，请等待其中一个完成。",
                retry_after=1,
            )
        self._active[caller] += 1
        try:
            yield
        finally:
            self._active[caller] -= 1
            if not self._active[caller]:
                del self._active[caller]

    def _read_keys(self) -> None:
        """Again whenever the file has changed; one that is no use by then leaves the keys as they were."""
        try:
            written = self._file.stat().st_mtime_ns if self._file else 0
            if written == self._written:
                self._complained = False
                return
            named = read_key_file(self._file) if self._file else []
        except (BadSettings, OSError) as error:
            if self._written is None:
                raise BadSettings(f"--api-key-file: {error}", f"--api-key-file：{error}") from None
            if not self._complained:
                log.error("--api-key-file: %s; the keys stay as they were", error)
                self._complained = True
            return
        self._complained = False
        if self._written is not None:
            log.info("%s has changed: %d keys", self._file, len(named))
        self._written = written
        bare = [(f"key-{number}", key) for number, key in enumerate(self._flag_keys, 1)]
        self._names = {_digest(key.encode()): name for name, key in [*bare, *named]}


def read_key_file(file: Path) -> list[tuple[str, str]]:
    """(name, key) of each line: `name:key`, or a key alone; `#` begins a comment. Raises BadSettings, OSError."""
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise BadSettings(f"{file} is not a UTF-8 text.", f"{file} 不是 UTF-8 文本。") from None
    named = []
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, colon, key = (part.strip() for part in line.partition(":"))
        if not colon:
            name, key = f"line-{number}", name
        if not (name and key):
            raise BadSettings(
                f"{file}, line {number}: write NAME:KEY or KEY.", f"{file} 第 {number} 行应为 名称:密钥。"
            )
        named.append((name, key))
    if not named:
        raise BadSettings(f"{file} has no keys.", f"{file} 中没有密钥。")
    return named


def _digest(key: bytes) -> bytes:
    """All digests are of one length, so comparing them does not tell the key's."""
    return hashlib.sha256(key).digest()
