"""What a name may look like. Names become file names, so a path, a separator or `..` in one is refused."""

from __future__ import annotations

import unicodedata

from higgs_server.types import InvalidRequest, NotFound

MAX_NAME_LENGTH = 100
_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}
"""What Windows takes for a device, with any suffix."""
_FORBIDDEN = set('/\\:*?"<>|%')


def check_name(name: str, param: str) -> str:
    """The name in NFC form, stripped. Raises InvalidRequest for what could leave its folder or not be a file."""
    name = unicodedata.normalize("NFC", name.strip())
    bad = (
        not name
        or len(name.encode("utf-8", "replace")) > MAX_NAME_LENGTH
        or name.startswith(".")
        or ".." in name
        or any(character in _FORBIDDEN or not character.isprintable() for character in name)
    )
    if bad:
        raise InvalidRequest(
            f"{param}: not a name. Use letters, digits, spaces, - and _, at most {MAX_NAME_LENGTH} bytes.",
            f"参数 {param} 不是有效的名称：请使用文字、数字、空格、- 和 _，不超过 {MAX_NAME_LENGTH} 字节。",
            param=param,
        )
    return name


def check_new_name(name: str, param: str) -> str:
    """The same for a name that is to be given: it must also be one that every request can say and every disk keep."""
    checked = check_name(name, param)
    # A request names several voices with commas between them; Windows drops a full stop at the end.
    if "," in checked or checked.endswith(".") or checked.split(".")[0].upper() in _DEVICES:
        raise InvalidRequest(
            f"{param}: {checked!r} cannot be a name. Take another one, without a comma or a full stop at the end.",
            f"参数 {param}：{checked!r} 不能用作名称，请换一个，不含逗号，也不以句点结尾。",
            param=param,
        )
    return checked


def not_found(kind: str, zh: str, name: str, existing: list[str], param: str) -> NotFound:
    """The error for a name that nobody has, with the names that exist."""
    return NotFound(
        f"No {kind} is called {name!r}. There is: {listed(existing)}.",
        f"没有名为 {name!r} 的{zh}。可用的{zh}：{listed(existing)}。",
        param=param,
    )


def listed(names: list[str], most: int = 20) -> str:
    """The names that exist, for an error message."""
    if not names:
        return "none"
    more = f", … ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more
