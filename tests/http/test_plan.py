"""`POST /plan`: what would be spoken, piece by piece and in its place, refused as `/generate` refuses it."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from higgs_server.text.normalize import normalize
from server_process import ServerProcess

DIALOGUE = "Scene one.\n[SPEAKER0] 你好，世界。 [speaker 1]  It is 25°C 🌞 (warm).\n【SPEAKER0】Bye"


def test_chunks_and_their_places_in_the_text(client: httpx.Client) -> None:
    body = {"text": DIALOGUE, "ref_audio": "belinda,chadwick", "chunk_method": "speaker"}
    plan = client.post("/plan", json=body).raise_for_status().json()
    assert plan["text"] == normalize(DIALOGUE).replace(" [SPEAKER1]", "\n[SPEAKER1]").replace(
        "[SPEAKER0]Bye", "[SPEAKER0] Bye"
    )
    assert [DIALOGUE[slice(*chunk["span"])] for chunk in plan["chunks"]] == [
        "Scene one.",
        "[SPEAKER0] 你好，世界。",
        "[speaker 1]  It is 25°C 🌞 (warm).",
        "【SPEAKER0】Bye",
    ]
    assert [chunk["speakers"] for chunk in plan["chunks"]] == [[], [0], [1], [0]]
    assert all(0.2 < chunk["seconds"] < 4 for chunk in plan["chunks"])
    assert plan["seconds"] == pytest.approx(sum(chunk["seconds"] for chunk in plan["chunks"]), abs=0.01)
    assert plan["checked"] is True


def test_the_plan_is_what_generate_speaks(client: httpx.Client) -> None:
    body = {"text": "One two (three). Four! Five", "chunk_method": "word", "chunk_max_word_num": 3, "seed": 1}
    plan = client.post("/plan", json=body).raise_for_status().json()
    spoken = client.post("/generate", json=body).raise_for_status().json()
    assert plan["text"] == spoken["generated_text"]
    assert [chunk["text"] for chunk in plan["chunks"]] == plan["text"].split("\n")
    assert plan["seconds"] == pytest.approx(spoken["duration"], rel=0.7)


@pytest.mark.parametrize(
    "body",
    [
        {"text": " \n "},
        {"text": "Hi.", "temperature": 3},
        {"text": "Hi.", "ref_audio": "nobody"},
        {"text": "Hi.", "ref_audio": "../belinda"},
        {"text": "Hi.", "scene_prompt": "moon"},
        {"text": "Hi.", "scene_prompt": "reading_blog"},
        {"text": "[SPEAKER1] Hi.", "ref_audio": "belinda"},
        {"text": "Hi.", "ref_audio": "profile:male_en_british"},
        {"text": "x" * 100_001},
        {"text": "?!"},
        {},
    ],
    ids=str,
)
def test_what_generate_refuses_is_refused_in_the_same_words(client: httpx.Client, body: dict[str, object]) -> None:
    plan, spoken = (client.post(path, json=body) for path in ("/plan", "/generate"))
    assert plan.status_code == spoken.status_code >= 400
    assert plan.json() == spoken.json()


def test_a_body_that_is_no_json_is_refused(client: httpx.Client) -> None:
    assert client.post("/plan", data={"text": "Hi."}).status_code == 415
    assert client.post("/plan", content=b"{", headers={"content-type": "application/json"}).status_code == 400


def test_without_a_model_text_and_names_are_planned_and_the_plan_says_so(tmp_path: Path) -> None:
    with ServerProcess(["--model-path", str(tmp_path)]) as process, httpx.Client(base_url=process.url) as client:
        for _ in range(2):
            plan = client.post("/plan", json={"text": "Hi (you)", "scene_prompt": "reading_blog"}).raise_for_status()
            assert plan.json()["chunks"][0]["text"] == "Hi you."
            assert plan.json()["checked"] is False
            assert client.post("/plan", json={"text": "Hi", "ref_audio": "nobody"}).status_code == 404
            process.wait_for("no model:")
