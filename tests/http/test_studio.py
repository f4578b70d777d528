"""The studio's files over HTTP: a page for browsers alone, nothing inline, nothing outside of its folder."""

from __future__ import annotations

import re

import httpx
import pytest

from higgs_server.server.studio import STUDIO
from server_process import ServerProcess

BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def test_a_browser_gets_the_page_and_a_program_the_list(client: httpx.Client) -> None:
    page = client.get("/", headers=BROWSER)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert client.get("/").json()["message"] == "higgs-audio-server"
    assert page.headers["vary"] == client.get("/").headers["vary"] == "Accept"
    named = re.findall(r'(?:href|src)="(studio/[^"]+)"', page.text)
    assert named
    for name in named:
        assert client.get(f"/{name}").status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_files_are_asked_for_again_and_not_sent_again(client: httpx.Client) -> None:
    first = client.get("/studio/main.js")
    assert "javascript" in first.headers["content-type"]
    assert first.headers["cache-control"] == "no-cache"
    again = client.get("/studio/main.js", headers={"if-none-match": first.headers["etag"]})
    assert again.status_code == 304
    assert client.head("/studio/main.js").headers["etag"] == first.headers["etag"]


@pytest.mark.parametrize(
    "path", ["", "nothing.js", "../settings.py", "..%2fsettings.py", "core", "%2fetc%2fpasswd", "%00"]
)
def test_nothing_else_is_a_file_of_the_studio(client: httpx.Client, path: str) -> None:
    answer = client.get(f"/studio/{path}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


def test_all_files_together_are_small() -> None:
    assert sum(file.stat().st_size for file in STUDIO.rglob("*") if file.is_file()) < 300_000


def test_with_a_key_the_page_opens_and_the_api_still_asks(keyed_server: ServerProcess) -> None:
    with httpx.Client(base_url=keyed_server.url) as client:
        assert client.get("/", headers=BROWSER).status_code == 200
        assert client.get("/studio/main.js").status_code == 200
        for path in ("/", "/info", "/studio", "/studioinfo"):
            assert client.get(path).status_code == 401
        assert client.get("/info", headers=BROWSER).status_code == 401
