"""The `higgs-server` command: serve, say, batch, voices, doctor. Each loads only what it needs."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from higgs_server import __version__
from higgs_server.types import InvalidRequest, LoadError, SpeechError

if TYPE_CHECKING:
    from higgs_server import batch
    from higgs_server.settings import Settings

PROGRAM = "higgs-server"
SOME_FAILED = 3
"""Exit status of a batch that went through its file, with lines that could not be spoken."""
NOBODY_READS = 141
"""Exit status where what reads the output has gone, as `head` does: a shell has it of a program that SIGPIPE ends."""
_BATCH = """\
Speaks every line of a file: IN.jsonl has one JSON object a line, with an id and the fields of POST /generate, such as

  {"id": "greeting", "text": "Hello!", "ref_audio": "belinda", "seed": 7}

Each becomes DIR/<id>.wav and a line of DIR/manifest.jsonl with id, line, seed, duration (seconds), finish_reason and
error. As many lines are spoken at once as the model has slots. The same command again, whatever ended it, goes on where
it stopped: what is finished is skipped, what failed is tried again."""
_BATCH_AFTER = f"""\
Every other setting of the model comes from the environment (HIGGS_SERVER_MAX_RUNNING=…) or higgs-server.toml.
Exit status: 0 every line is spoken; {SOME_FAILED} some could not be, and the manifest says why; 1 it could not go on;
2 wrong usage."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        try:
            return _run(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            _flush()
    except BrokenPipeError:
        return NOBODY_READS
    except (SpeechError, OSError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(given: list[str]) -> int:
    if given[:1] == ["serve"]:
        from higgs_server.main import main as serve

        return serve(given[1:], program=f"{PROGRAM} serve")
    options = _parser().parse_args(given)
    return int(options.run(options))


def _flush() -> None:
    try:
        print(end="", flush=True)
    except OSError:
        # At exit Python tries again, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(PROGRAM, description="Speech from text, on your own machine.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("serve", help="start the server (see `higgs-server serve --help`)")

    say = commands.add_parser("say", help="speak a text into a WAV file")
    say.add_argument("text", help='what to say; "-" reads standard input')
    say.add_argument("-o", "--output", type=Path, required=True, help="the WAV file to write")
    say.add_argument("--ref-audio", metavar="NAME", help="a voice's name, `a,b` for two speakers, or profile:NAME")
    say.add_argument("--scene-prompt", metavar="NAME", help="a scene's name")
    say.add_argument("--seed", type=int, help="same seed, same audio")
    say.add_argument("--temperature", type=float, help="0 to 2; 0 always takes the likeliest code")
    _add_model(say)
    say.set_defaults(run=_say)

    batch = commands.add_parser(
        "batch",
        help="speak the texts of a file, many at once",
        description=_BATCH,
        epilog=_BATCH_AFTER,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    batch.add_argument("input", type=Path, metavar="IN.jsonl", help="one JSON object a line: id, text, …")
    batch.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the sounds and the manifest")
    batch.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="speak on a Ray cluster, one model a GPU (without GPUs one a node): auto, HOST:6379 or ray://HOST:10001; "
        "needs the extra [ray], and the model and voices where the nodes see them",
    )
    _add_model(batch)
    batch.set_defaults(run=_batch)

    voices = commands.add_parser("voices", help="list the voices")
    _add_voices_dir(voices)
    voices.set_defaults(run=_voices)

    doctor = commands.add_parser("doctor", help="say what this machine can run, and what is missing")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model-path",
        help="a hub id, a folder, or embedded; without one here or in the settings the best that this machine can run",
    )
    parser.add_argument("--device", choices=["auto", "cuda", "mps", "cpu"])
    _add_voices_dir(parser)


def _add_voices_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--voice-prompts-dir", metavar="DIR", help="folder of reference voices, or an fsspec URL")


def _say(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from higgs_server.audio import wav
    from higgs_server.logs import set_up_logging
    from higgs_server.synthesizer import Synthesizer, join
    from higgs_server.telemetry import progress_bar
    from higgs_server.types import SAMPLING_RATE, SpeechRequest

    set_up_logging("WARNING", None)
    text = _standard_input() if options.text == "-" else options.text
    names = ("ref_audio", "scene_prompt", "seed", "temperature")
    fields = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    # Piece by piece, so that a long text is spoken to its end: max_new_tokens holds for each.
    request = SpeechRequest.parse(text=text, chunk_method="word", chunk_max_word_num=100, **fields)
    if not options.output.absolute().parent.is_dir():
        print(f"{PROGRAM}: the folder {options.output.absolute().parent} does not exist", file=sys.stderr)
        return 1
    settings = _settings(options)
    with progress_bar(f"loading {settings.model_path}") as progress:
        synthesizer = Synthesizer.load(settings.load_options(), settings, progress)
    pieces = []
    with (
        closing(synthesizer),
        tqdm(
            desc="speaking", unit="s", disable=None, leave=False, bar_format="{desc} {n:.1f} s of sound {elapsed}"
        ) as bar,
    ):
        script = synthesizer.plan(request)
        for piece in synthesizer.perform(script):
            pieces.append(piece)
            bar.update(len(piece.samples) / SAMPLING_RATE)
    speech = join(script, pieces)
    try:
        options.output.write_bytes(wav.encode(speech.samples))
    except OSError as error:
        print(f"{PROGRAM}: {options.output} cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    print(f"{options.output}: {speech.duration:.1f} s, model {settings.model_path}, seed {speech.seed}")
    if speech.finish_reason != "stop":
        print(f"{PROGRAM}: part of the text was cut short ({speech.finish_reason})", file=sys.stderr)
    return 0


def _standard_input() -> str:
    if sys.stdin is None:
        raise InvalidRequest("standard input is closed: give the text itself.", "标准输入已关闭：请直接给出文字。")
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"standard input is not UTF-8 (byte {error.start + 1}): convert it, as `iconv -f GBK -t UTF-8` does.",
            f"标准输入不是 UTF-8 编码（第 {error.start + 1} 字节）：请先转换，例如 `iconv -f GBK -t UTF-8`。",
        ) from None


def _settings(options: argparse.Namespace, *, here: bool = True) -> Settings:
    """Flags, environment and file; without a model in any of them the best that this machine can run, if it is to."""
    from higgs_server.doctor import best_model
    from higgs_server.settings import Settings

    names = ("model_path", "device", "voice_prompts_dir")
    settings = Settings(**{name: getattr(options, name) for name in names if getattr(options, name) is not None})
    if here and "model_path" not in settings.model_fields_set:
        settings = settings.model_copy(update={"model_path": best_model()})
    return settings


def _batch(options: argparse.Namespace) -> int:
    from higgs_server import batch
    from higgs_server.logs import set_up_logging
    from higgs_server.synthesizer import Synthesizer
    from higgs_server.telemetry import progress_bar

    set_up_logging("WARNING", None)
    settings = _settings(options, here=options.ray is None)

    def here(lines: Iterator[batch.Line]) -> Iterator[batch.Outcome]:
        with progress_bar(f"loading {settings.model_path}") as progress:
            synthesizer = Synthesizer.load(settings.load_options(), settings, progress)
        try:
            yield from batch.speak_here(synthesizer, lines)
        finally:
            synthesizer.close()

    def on_cluster(lines: Iterator[batch.Line]) -> Iterator[batch.Outcome]:
        try:
            from higgs_server.deploy.ray_data import speak_on_cluster
        except ImportError as error:
            raise LoadError(
                f"--ray needs the package {error.name}: pip install 'higgs-audio-server[ray]'", code="extra_missing"
            ) from None
        return speak_on_cluster(options.ray, settings, lines)

    summary = batch.run(options.input, options.out, here if options.ray is None else on_cluster)
    print(
        f"{options.out}: {summary.spoken} spoken ({summary.cut_short} cut short), {summary.finished_before} finished "
        f"before, {summary.failed} failed; {summary.audio_seconds:.1f} s of sound in {summary.seconds:.1f} s "
        f"({summary.rate:.1f} audio-seconds a second), model {settings.model_path}"
    )
    return SOME_FAILED if summary.failed else 0


def _voices(options: argparse.Namespace) -> int:
    from higgs_server.library.voices import VoiceLibrary
    from higgs_server.settings import Settings

    flags = {"voice_prompts_dir": options.voice_prompts_dir} if options.voice_prompts_dir else {}
    folder = Settings(**flags).voice_prompts_dir
    voices = VoiceLibrary(folder).list()
    for voice in voices:
        print(f"{voice.name:<20} {voice.transcript or '(no transcript)'}")
    if not voices:
        print(f"No voices in {folder}: put clips NAME.wav there, with NAME.txt saying what they say.", file=sys.stderr)
    return 0 if voices else 1


def _doctor(options: argparse.Namespace) -> int:
    from higgs_server.doctor import report

    print(report())
    return 0


if __name__ == "__main__":
    sys.exit(main())
