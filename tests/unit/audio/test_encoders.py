"""Every row of the table of encoders keeps the same contract, heard by decoders that are not ours."""

from __future__ import annotations

import gc
import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream

from decoders import decode
from higgs_server.audio.encoders import FORMATS, new_encoder
from higgs_server.audio.pcm import to_s16le
from higgs_server.types import SAMPLING_RATE as RATE
from higgs_server.types import InvalidRequest, Samples

SLACK = 0.06
"""Seconds a decoded file may be longer than what was fed: MP3 and ADTS streams cannot say what is padding."""
LOSSLESS = ("pcm", "wav", "flac")
BOTH = pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
every_format = pytest.mark.parametrize("name", sorted(FORMATS))


def tone(frequency: float, seconds: float) -> Samples:
    time = np.arange(round(seconds * RATE)) / RATE
    return (0.5 * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def babble(samples: int = 60_013, seed: int = 0) -> Samples:
    """Harmonics of a gliding voice, four syllables a second: has no period that could hide a shift."""
    time = np.arange(samples) / RATE
    phase = 2 * np.pi * np.cumsum(120 + 40 * np.sin(2 * np.pi * 0.7 * time + seed)) / RATE
    voice = sum(np.sin(k * phase) / k for k in range(1, 20))
    return (0.25 * voice * np.clip(np.sin(2 * np.pi * 4 * time), 0, 1)).astype(np.float32)


def pieces(samples: Samples, sizes: Iterable[int]) -> Iterable[Samples]:
    edges = [0, *np.cumsum(list(sizes)).tolist(), len(samples)]
    return [samples[a:b] for a, b in pairwise(edges)]


def encode(name: str, samples: Samples, *, streamed: bool) -> bytes:
    with new_encoder(name, streamed=streamed) as encoder:
        return encoder.feed(samples) + encoder.finish()


def aligned(heard: Samples, spoken: Samples) -> tuple[int, float]:
    """The shift of `heard` in samples, and the correlation of the two after undoing it."""
    size = 1 << (len(heard) + len(spoken)).bit_length()
    product = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(spoken, size)), size)
    shift = int(np.argmax(product))
    shift = shift - size if shift > size // 2 else shift
    there = heard[max(shift, 0) :][: len(spoken)]
    here = spoken[max(-shift, 0) :][: len(there)]
    return shift, float(np.corrcoef(there[: len(here)], here)[0, 1])


@BOTH
@every_format
def test_decodes_to_the_same_sound_of_the_same_length(name: str, streamed: bool) -> None:
    spoken = babble()
    heard = decode(encode(name, spoken, streamed=streamed), name)
    assert abs(len(heard) - len(spoken)) <= SLACK * RATE
    shift, correlation = aligned(heard, spoken)
    assert -2 <= shift <= SLACK * RATE  # Opus' filters turn the phase by less than a tenth of a millisecond
    assert correlation > 0.98


@pytest.mark.parametrize("samples", range(24_000, 25_152, 96))
@pytest.mark.parametrize("name", ["mp3", "aac", "opus"])
def test_the_length_holds_wherever_the_last_frame_ends(name: str, samples: int) -> None:
    heard = decode(encode(name, babble(samples), streamed=True), name)
    assert -1 <= len(heard) - samples <= SLACK * RATE


@BOTH
@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_formats_carry_exactly_the_pcm(name: str, streamed: bool) -> None:
    spoken = babble()
    data = encode(name, spoken, streamed=streamed)
    heard = data if name == "pcm" else (decode(data, name) * 32768).astype("<i2").tobytes()
    assert heard == to_s16le(spoken)


@BOTH
@every_format
def test_odd_pieces_make_the_same_sound_as_one_piece(name: str, streamed: bool) -> None:
    spoken = babble()
    with new_encoder(name, streamed=streamed) as encoder:
        parts = [encoder.feed(piece) for piece in pieces(spoken, [1, 0, 7, 479, 1021, 3, 20_011, 576, 1152])]
        data = b"".join([*parts, encoder.finish()])
    whole = encode(name, spoken, streamed=streamed)
    np.testing.assert_array_equal(decode(data, name), decode(whole, name))
    if name in LOSSLESS:
        assert data == whole


@BOTH
@every_format
def test_the_end_is_not_cut(name: str, streamed: bool) -> None:
    """Silence, then a tone in the last 50 ms: nearly all of its energy is heard."""
    spoken = np.concatenate([np.zeros(30_011, np.float32), tone(1000, 0.05)])
    heard = decode(encode(name, spoken, streamed=streamed), name)
    shift, correlation = aligned(heard, spoken)
    assert correlation > 0.95
    ending = heard[30_011 + shift :]
    assert float(np.sum(ending**2)) > 0.85 * float(np.sum(spoken**2))
    # Up to its very end, not only in its first half.
    assert np.abs(heard[shift + len(spoken) - 240 :][:240]).max() > 0.3


@every_format
def test_the_first_sound_leaves_long_before_the_last(name: str) -> None:
    empty = len(encode(name, np.zeros(0, np.float32), streamed=True))
    spoken = babble(5 * RATE)
    with new_encoder(name, streamed=True) as encoder:
        sent = np.cumsum([len(encoder.feed(piece)) for piece in np.split(spoken, 500)])
        total = int(sent[-1]) + len(encoder.finish())
    assert int(np.argmax(sent > empty)) <= 15  # pieces of 10 ms: more than headers within 160 ms
    behind = total * np.arange(1, 501) / 500 - sent
    assert behind.max() < 0.05 * total  # never more than a quarter of a second held back


@every_format
def test_a_whole_file_may_wait_but_a_stream_never_goes_back(name: str) -> None:
    """Both decode alike; only their headers differ."""
    spoken = babble()
    streamed, whole = (decode(encode(name, spoken, streamed=how), name) for how in (True, False))
    correlation = aligned(streamed, whole)[1]
    assert correlation > 0.99


def test_a_streamed_mp3_has_no_xing_frame_and_no_tags() -> None:
    data = encode("mp3", babble(), streamed=True)
    assert b"Xing" not in data
    assert b"Info" not in data
    assert data[:2] == b"\xff\xfb"  # a frame at once: MPEG-1, layer III, no ID3 before it
    assert b"Info" in encode("mp3", babble(), streamed=False)[:200]


def test_a_whole_mp3_says_what_is_padding() -> None:
    spoken = babble()
    with av.open(io.BytesIO(encode("mp3", spoken, streamed=False)), format="mp3") as source:
        frames = list(source.decode(audio=0))
    assert sum(frame.samples for frame in frames) == 2 * len(spoken)  # at 48 kHz


def test_wav_sizes() -> None:
    spoken = babble(1000)
    streamed, whole = (encode("wav", spoken, streamed=how) for how in (True, False))
    assert streamed[4:8] == streamed[40:44] == b"\xff\xff\xff\xff"
    assert int.from_bytes(whole[4:8], "little") == len(whole) - 8
    assert int.from_bytes(whole[40:44], "little") == 2000
    assert streamed[44:] == whole[44:]


def test_only_a_whole_flac_says_how_long_it_is() -> None:
    spoken = babble(30_000)
    streamed, whole = (encode("flac", spoken, streamed=how) for how in (True, False))
    # STREAMINFO (RFC 9639, 8.2): 36 bits of total samples end at byte 26, the MD5 of the samples follows.
    assert int.from_bytes(streamed[21:26], "big") & (1 << 36) - 1 == 0
    assert int.from_bytes(whole[21:26], "big") & (1 << 36) - 1 == 30_000
    assert streamed[26:42] == bytes(16) != whole[26:42]


@BOTH
@every_format
def test_nothing_fed_is_an_empty_file_and_no_error(name: str, streamed: bool) -> None:
    """Formats without a header of their own are empty then; the others decode to no samples."""
    data = encode(name, np.zeros(0, np.float32), streamed=streamed)
    if name in ("pcm", "aac") or (name, streamed) == ("mp3", True):
        assert data == b""
    elif name in ("wav", "flac"):
        assert len(decode(data, name)) == 0
    else:
        assert data[:4] == b"OggS" if name == "opus" else b"Info" in data


@every_format
def test_what_is_too_loud_is_clipped_not_wrapped(name: str) -> None:
    loud = np.clip(4 * tone(300, 1.0), -2, 2)
    heard = decode(encode(name, loud, streamed=True), name)
    assert aligned(heard, np.clip(loud, -1, 1))[1] > 0.98


def test_twenty_streams_in_mixed_formats_do_not_mix() -> None:
    names = [*FORMATS, *FORMATS, *FORMATS, "mp3", "opus"]
    frequencies = [300.0 + 100 * i for i in range(len(names))]
    sounds = [np.array_split(tone(frequency, 1.0), 40) for frequency in frequencies]
    encoders = [new_encoder(name, streamed=True) for name in names]
    files = [bytearray() for _ in names]

    def step(stream: int, piece: int) -> None:
        files[stream] += encoders[stream].feed(sounds[stream][piece])

    with ThreadPoolExecutor(4) as pool:
        for piece in range(40):
            list(pool.map(step, range(len(names)), [piece] * len(names)))
    for name, frequency, encoder, file in zip(names, frequencies, encoders, files, strict=True):
        file += encoder.finish()
        heard = decode(bytes(file), name)
        spectrum = np.abs(np.fft.rfft(heard * np.hanning(len(heard)))) ** 2
        bins = np.fft.rfftfreq(len(heard), 1 / RATE)
        assert abs(bins[spectrum.argmax()] - frequency) < 3
        assert spectrum[np.abs(bins - frequency) < 20].sum() > 0.98 * spectrum.sum()


def codecs_alive() -> int:
    return sum(issubclass(type(thing), AudioStream) for thing in gc.get_objects())


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "abandoned"])
@every_format
def test_a_closed_encoder_frees_its_codec_at_once(name: str, finished: bool) -> None:
    gc.collect()
    before = codecs_alive()
    gc.disable()
    try:
        with new_encoder(name, streamed=True) as encoder:
            encoder.feed(babble(5000))
            assert codecs_alive() - before == (name not in ("pcm", "wav"))
            if finished:
                encoder.finish()
        encoder.close()  # twice does no harm
        assert codecs_alive() == before
    finally:
        gc.enable()


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match=r"ogg.*mp3, opus, aac, flac, wav, pcm") as refused:
        new_encoder("ogg", streamed=True)
    assert refused.value.param == "response_format"


@every_format
def test_names_and_content_types(name: str) -> None:
    row = FORMATS[name]
    assert row.suffix == f".{name}"
    assert row.content_type == {"mp3": "audio/mpeg", "opus": "audio/ogg"}.get(name, f"audio/{name}")
