"""What the studio makes of texts that come from elsewhere: turns of scripts, words of Markdown, places of spans."""

from __future__ import annotations

from typing import Any

from browser.studio import Studio

MARKDOWN = r"""---
title: not read
---
# The *ferry*

A **bold** word, some `code`, snake_case_name, 2 * 3 * 4, \*stars\* and a [link](https://a.example/b_(c)).[^1]

> - [x] quoted
![a gull](gull.png)

| when | where |
|:-----|------:|
| dawn | pier  |

***

```python
# stays
```
<b>Bye</b>

[^1]: A note.
[ref]: https://a.example
"""
WORDS = """The ferry

A bold word, some code, snake_case_name, 2 * 3 * 4, *stars* and a link.

quoted
a gull

when, where
dawn, pier

# stays
Bye

A note."""


def call(studio: Studio, module: str, function: str, *arguments: Any) -> Any:
    script = "async ([path, name, given]) => (await import(path))[name](...given)"
    return studio.page.evaluate(script, [f"/studio/core/{module}.js", function, list(arguments)])


def test_scripts_become_turns(studio: Studio) -> None:
    for script, turns in (
        (
            "Dawn.\r\n[SPEAKER0] Hi.\nAgain. [speaker 01] Yo\n【SPEAKER0】 你好\n[SPEAKER3]\n",
            [(None, "Dawn."), ("SPEAKER0", "Hi.\nAgain."), ("SPEAKER1", "Yo"), ("SPEAKER0", "你好")],
        ),
        (
            "Anna: Hi: you.\nBob Smith: Yo,\nand more.\n\n**Anna:** See https://a.example",
            [("Anna", "Hi: you."), ("Bob Smith", "Yo,\nand more."), ("Anna", "See https://a.example")],
        ),
        ("安娜：你好。\n老王：嗯。", [("安娜", "你好。"), ("老王", "嗯。")]),
        (
            "At 10:30.\nhttps://a.b\n\nSo: no.",
            [(None, "At 10:30."), (None, "https://a.b"), (None, "So: no.")],
        ),
        (" \n ", []),
    ):
        found = call(studio, "turns", "parseTurns", script)
        assert [(turn["speaker"], turn["text"]) for turn in found] == turns


def test_markdown_becomes_its_words(studio: Studio) -> None:
    assert call(studio, "plain", "withoutMarkdown", MARKDOWN) == WORDS


def test_code_points_become_places_in_javascripts_strings(studio: Studio) -> None:
    text = "a🌞b😀"
    assert call(studio, "reading", "offsets", text, 10) == [10, 11, 13, 14, 16]


def test_code_for_a_take_without_a_scene_asks_for_none(studio: Studio) -> None:
    kept = {"request": {"text": "Hi.", "ref_audio": None, "scene_prompt": None, "top_k": None}, "answer": {"seed": 3}}
    for function in ("asCurl", "asPython"):
        code = call(studio, "files", function, kept, False)
        assert '"scene_prompt": ""' in code  # left out it would be the usual one
        assert "null" not in code
