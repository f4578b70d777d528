"""A model's name to a folder on disk: a folder as it is, a hub id downloaded (or found in the hub's cache).

Knows which files a model is made of only as patterns; reads none of them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from higgs_server.types import LoadError, Progress

LANGUAGE_MODEL_FILES = ("*.json", "*.safetensors", "*.jinja")
CODEC_FILES = ("*.json", "*.safetensors", "*.pth")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_ANSWER_SECONDS = 10
"""How long the hub may take to answer the first question."""

logger = logging.getLogger(__name__)


def resolve(
    model: str,
    patterns: Sequence[str],
    *,
    flag: str = "--model-path",
    revision: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """The folder of `model`, a folder or a hub id; `flag` is the option it came from, for errors.

    A download that was cut off goes on with the files that are still missing. A hub that cannot be reached is no error
    where its cache holds the model whole. Raises LoadError otherwise, after one unanswered question and no retries.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise LoadError(
            f"{model} is a file: give {flag} the folder it is in.", f"{model} 是文件：请让 {flag} 指向其所在目录。"
        )
    if not _HUB_ID.fullmatch(model):
        raise LoadError(
            f"There is no folder {model}: give {flag} an existing folder or a hub id such as owner/name.",
            f"目录 {model} 不存在：请让 {flag} 指向已有目录，或使用 owner/name 形式的模型 ID。",
        )
    return _download(model, patterns, flag, revision, progress)


def _download(model: str, patterns: Sequence[str], flag: str, revision: str | None, progress: Progress | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    wanted: dict[str, Any] = {"repo_id": model, "revision": revision, "allow_patterns": list(patterns)}
    try:
        # Asked first because snapshot_download retries for a minute where nobody answers.
        HfApi().model_info(model, revision=revision, timeout=_ANSWER_SECONDS)
    except GatedRepoError:
        raise LoadError(
            f"{model} asks for its licence to be accepted: do so on its page, then log in with `hf auth login` or set "
            "HF_TOKEN.",
            f"{model} 需要先接受许可协议：请在其页面上接受，然后运行 `hf auth login` 或设置 HF_TOKEN。",
        ) from None
    except RevisionNotFoundError:
        raise LoadError(
            f"{model} has no revision {revision}: check --revision.",
            f"{model} 没有修订版 {revision}：请检查 --revision。",
        ) from None
    except RepositoryNotFoundError:
        raise LoadError(
            f"The hub has no model {model}, or not for you: check {flag}, or set HF_TOKEN if it is private.",
            f"Hub 上没有模型 {model} 或无权访问：请检查 {flag}；私有模型请设置 HF_TOKEN。",
        ) from None
    except Exception as error:  # whatever a network raises: the HTTP library's own classes differ between versions
        return _cached(model, wanted, flag, error)
    try:
        return Path(snapshot_download(**wanted, tqdm_class=_bar(model, progress)))
    except Exception as error:
        raise LoadError(
            f"The download of {model} broke off ({_first_line(error)}): check the free disk "
            "space and start again; files that are complete are kept.",
            f"{model} 下载中断（{_first_line(error)}）：请检查磁盘剩余空间后重新启动，已完成的文件会保留。",
        ) from error


def _cached(model: str, wanted: dict[str, Any], flag: str, reason: Exception) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(**wanted, local_files_only=True))
    except Exception:  # nothing there, or only a part
        raise LoadError(
            f"{model} cannot be downloaded because the hub cannot be reached ({_first_line(reason)}), and this machine "
            f"has no whole copy of it: check the network (or set HF_ENDPOINT to a mirror), give {flag} a folder, or "
            "start with --model-path embedded.",
            f"无法连接 Hub（{_first_line(reason)}），本机也没有 {model} 的完整副本：请检查网络（或用 HF_ENDPOINT "
            f"指定镜像），让 {flag} 指向本地目录，或以 --model-path embedded 启动。",
            code="hub_unreachable",
        ) from reason
    logger.warning("the hub cannot be reached; using the copy of %s in %s", model, folder)
    return folder


def _bar(model: str, progress: Progress | None) -> type[Any] | None:
    """The hub's progress bar, which also tells `progress` how much of all bytes is there."""
    if progress is None:
        return None
    from huggingface_hub.utils.tqdm import tqdm

    report: Progress = progress

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            # Counted here, because a bar that is not shown (no terminal) counts nothing. Two bars are in bytes where
            # the hub compresses transfers: the other one counts what reaches the disk.
            self._counts = options.get("unit") == "B" and not str(options.get("name")).endswith(".transfer")
            self._done = float(options.get("initial") or 0)
            super().__init__(*args, **options)  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            shown: bool | None = super().update(n)
            self._done += n or 0
            if self._counts and self.total:
                report(f"downloading {model}", min(1.0, self._done / self.total))
            return shown

    return Bar


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
