"""Every setting of the server, with its default and its help. The only reader of flags, environment and file.

Precedence: flag, then environment (`HIGGS_SERVER_PORT=…`), then `higgs-server.toml` in the working directory. Knows
nothing of models and imports none.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tomllib import TOMLDecodeError
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from higgs_server.types import LoadOptions, SpeechError

HIGGS = "bosonai/higgs-audio-v2-generation-3B-base"
EMBEDDED = "embedded"
ENV_PREFIX = "HIGGS_SERVER_"
FILE = "higgs-server.toml"
_CREDENTIALS = "credentials"
TRACING_PACKAGES = ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter")


class BadSettings(SpeechError):
    """A flag, an environment variable or a line of the file that cannot be used; the message says which."""

    status, code = 0, "bad_settings"
    """No HTTP status: a server with such settings does not start."""


def _location(value: object) -> object:
    """A folder, or the URL of storage that many machines see: what can be opened from here."""
    if not isinstance(value, str) or "://" not in value:
        return Path(value) if isinstance(value, str) else value
    kind, _, rest = value.partition("://")
    if kind in ("file", "local"):
        return Path(rest)
    _without_credentials(value)
    try:
        from fsspec import get_filesystem_class

        get_filesystem_class(kind)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{error}. {kind}:// needs fsspec and its package for it, such as s3fs or gcsfs") from None
    return value


def _without_credentials(address: str) -> str:
    if any("@" in part.partition("/")[0] for part in address.split("://")[1:]):
        raise PydanticCustomError(
            _CREDENTIALS,
            "addresses are shown and logged: give credentials in the environment or by a flag for them, not in the "
            "address",
        )
    return address


Location = Annotated[Path | str, BeforeValidator(_location)]
"""A Path, or a str that is a URL."""


class Settings(BaseSettings):
    """Speech from text over HTTP: a self-hosted server around Higgs Audio v2.

    Every flag can be given in the environment too, as HIGGS_SERVER_PORT, or in higgs-server.toml, as port = 8000.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        env_prefix=ENV_PREFIX,
        toml_file=FILE,
        extra="forbid",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    host: str = Field("0.0.0.0", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    model_path: Annotated[str, AfterValidator(_without_credentials)] = Field(
        HIGGS,
        description='What speaks: a hub id, a folder, "embedded" (no GPU, no download), or another engine\'s http://HOST:PORT.',
    )
    audio_tokenizer_path: str = Field(
        "bosonai/higgs-audio-v2-tokenizer", description="The model's codec: a hub id or a folder."
    )
    device: Literal["auto", "cuda", "mps", "cpu"] = Field("auto", description="Where the model runs.")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="Precision of the model; auto is bfloat16 on a GPU, on a CPU what the checkpoint holds."
    )
    quantization: Literal["auto", "none", "int8", "int4"] = Field(
        "auto",
        description="Weights in fewer bits, int4 on a CPU only; auto is int8 there for large models without --dtype.",
    )
    revision: str | None = Field(None, description="Revision of the model on the hub: a branch, tag or commit.")
    max_new_tokens: int = Field(
        2048, ge=1, description="Longest answer in frames, 25 a second: the default of a request, and its cap."
    )
    max_running: int | None = Field(
        None, ge=1, description="Utterances generated at the same time; by default what suits model and device."
    )
    max_waiting: int | None = Field(
        None,
        ge=0,
        description="Requests that may wait for their turn, more are answered 503; by default four for each that runs, "
        "at least 32.",
    )
    request_timeout: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds a request may take, waiting included; its header x-request-timeout can only shorten it. "
        "By default as long as it takes.",
    )
    max_context: int = Field(
        4096, ge=256, description="Positions an utterance has for prompt and answer together; memory goes with it."
    )
    guard: float = Field(
        4.0,
        ge=0,
        allow_inf_nan=False,
        description="End speech that takes this many times a slow reader's time, or repeats itself; 0 never.",
    )
    voice_prompts_dir: Location = Field(
        Path("examples/voice_prompts"),
        description="Folder of reference voices, NAME.wav with NAME.txt beside it; or any fsspec URL, as s3://BUCKET/DIR.",
    )
    scene_prompts_dir: Path = Field(
        Path("examples/scene_prompts"), description="Folder of scene descriptions: NAME.txt."
    )
    api_key: SecretStr | None = Field(
        None,
        description="Key that every endpoint asks for (Bearer or X-API-Key); /health and the studio's own files are "
        "open. Several are separated by commas.",
    )
    api_key_file: Path | None = Field(
        None, description="File of more keys, read again when it changes: a line each, NAME:KEY or KEY."
    )
    rate_limit: int | None = Field(
        None,
        ge=1,
        description="Requests a minute that each caller (key, else address) may send; by default any.",
    )
    max_concurrent: int | None = Field(
        None, ge=1, description="Requests that each caller may have at the same time; by default any."
    )
    cors_origins: str | None = Field(
        None, description='Origins whose pages may use this server besides its own, separated by commas; "*" for all.'
    )
    remote_api_key: SecretStr | None = Field(
        None, description="Key that the other engine asks for, where --model-path is an address."
    )
    log_file: Path | None = Field(
        Path("api_server.log"), description='Log beside the console, rotated at 10 MB; "" for none.'
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least severity that is logged. Users' texts appear at DEBUG only."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Lines for people, or a JSON object a line for programs."
    )
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^/]",
        description="OpenTelemetry collector to send a span a request to (OTLP over HTTP), such as "
        "http://localhost:4318; needs the extra [tracing].",
    )
    max_text_length: int = Field(100_000, ge=1, description="Longest text of a request, in characters.")
    max_upload_mb: int = Field(25, ge=1, description="Largest upload in MB.")
    max_clip_seconds: float = Field(
        60.0, gt=0, allow_inf_nan=False, description="Longest reference clip of a request, in seconds."
    )
    client_timeout: float = Field(
        30.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds of patience with a client that sends less than 1 kB a second or does not read; then it is "
        "cut off. Who has read megabytes may be playing them, and has up to four minutes more.",
    )
    keep_alive: int = Field(65, ge=0, description="Seconds an idle connection stays open for another request.")
    shutdown_timeout: int = Field(
        30,
        ge=0,
        description="Seconds that running requests have to finish after SIGTERM; a second signal ends at once.",
    )
    reload: bool = Field(False, description="Restart when a source file changes (for development).")

    @model_validator(mode="wrap")
    @classmethod
    def _explained(cls, values: Any, read: ModelWrapValidatorHandler[Self]) -> Self:
        """Wherever settings are read: one sentence for a person in place of pydantic's report."""
        try:
            return read(values)
        except ValidationError as error:
            raise _bad_setting(error) from None

    @field_validator("log_file", mode="before")
    @classmethod
    def _no_log_file(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("otlp_endpoint")
    @classmethod
    def _tracing_installed(cls, endpoint: str | None) -> str | None:
        if endpoint is not None and any(find_spec(name) is None for name in TRACING_PACKAGES):
            raise PydanticCustomError(
                "extra_missing",
                "traces need packages that are not installed: pip install 'higgs-audio-server[tracing]'",
            )
        return endpoint

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags (as keywords), environment, then the file."""
        try:
            file = TomlConfigSettingsSource(settings_cls)
        except (TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise BadSettings(f"{FILE} cannot be read: {error}", f"无法读取 {FILE}：{error}") from None
        return init_settings, env_settings, file

    @classmethod
    def from_cli(cls, arguments: Sequence[str], *, program: str) -> Settings:
        """Reads flags; exits with a usage message on a wrong one, prints all of them on --help."""
        source: CliSettingsSource[Settings] = CliSettingsSource(
            cls, cli_parse_args=list(arguments), cli_prog_name=program, cli_exit_on_error=True
        )
        try:
            return cls(_cli_settings_source=source)
        except BadSettings as error:
            print(f"{program}: error: {error}", file=sys.stderr)
            raise SystemExit(2) from None

    def load_options(self) -> LoadOptions:
        """The part of the settings that says which model to load, and how."""
        return LoadOptions(
            model_path=self.model_path,
            audio_tokenizer_path=self.audio_tokenizer_path,
            device=self.device,
            dtype=self.dtype,
            quantization=self.quantization,
            revision=self.revision,
            max_new_tokens=self.max_new_tokens,
            max_running=self.max_running,
            max_context=self.max_context,
            guard=self.guard,
            remote_api_key=self.remote_api_key.get_secret_value() if self.remote_api_key else None,
        )

    @property
    def open_to_all(self) -> bool:
        """Whether other machines can reach it and need no key."""
        return self.host not in ("127.0.0.1", "::1", "localhost") and not (self.api_key or self.api_key_file)

    def export(self) -> None:
        """Puts every setting into the environment, for the processes that --reload starts."""
        for name, value in self:
            if isinstance(value, SecretStr):
                value = value.get_secret_value()
            key = ENV_PREFIX + name.upper()
            if value is not None:
                os.environ[key] = str(value)
            elif name == "log_file":
                os.environ[key] = ""
            else:
                os.environ.pop(key, None)


def _bad_setting(error: ValidationError) -> BadSettings:
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    if name not in Settings.model_fields:
        return BadSettings(
            f"{FILE} has a setting {name!r}, which does not exist.", f"{FILE} 中的 {name!r} 不是设置项。"
        )
    secret = name in ("api_key", "remote_api_key") or first["type"] == _CREDENTIALS
    given = "" if secret else f", got {str(first['input'])!r}"
    where = f"--{name.replace('_', '-')}, {ENV_PREFIX}{name.upper()} or {name} in {FILE}"
    return BadSettings(f"{where}: {first['msg']}{given}.", f"设置 {name} 无效：{first['msg']}{given}。", param=name)


def shipped_examples(folder: Path) -> Path | None:
    """The folder that ships in the package or the checkout, for a default one (`examples/…`) and for itself."""
    here = Path(__file__).resolve().parent
    for root in (here, here.parents[1]):
        shipped = root / "examples" / folder.name
        if shipped.is_dir() and (folder == Path("examples", folder.name) or folder.resolve() == shipped):
            return shipped
    return None
