"""Samples to bytes and back: PCM, WAV, and the decoder of whatever people upload."""

from __future__ import annotations

import io
import wave

import av
import numpy as np
import numpy.typing as npt
import pytest

from higgs_server.audio import wav
from higgs_server.audio.decode import container_of, decode, duration
from higgs_server.audio.pcm import to_s16le
from higgs_server.types import BadAudio, TooLarge

RATE = 24_000
FORMATS = {
    "wav": "pcm_s16le",
    "flac": "flac",
    "mp3": "libmp3lame",
    "ogg": "libopus",
    "mp4": "aac",
    "adts": "aac",
    "webm": "libopus",
    "aiff": "pcm_s16be",
}


def tone(seconds: float = 1.0, rate: int = RATE, frequency: float = 440.0) -> npt.NDArray[np.float32]:
    time = np.arange(int(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def encoded(container: str, codec: str, samples: npt.NDArray[np.float32], rate: int = RATE) -> bytes:
    """`samples` are mono, or [channels, time] of stereo."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        layout = "mono" if samples.ndim == 1 else "stereo"
        stream = out.add_stream(codec, rate=48_000 if codec == "libopus" else rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.atleast_2d(samples), format="fltp", layout=layout)
        frame.sample_rate = rate
        resampler = av.AudioResampler(format=stream.format, layout=layout, rate=stream.rate)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    return buffer.getvalue()


def frequency_of(samples: npt.NDArray[np.float32]) -> float:
    return float(np.abs(np.fft.rfft(samples)).argmax() * RATE / len(samples))


def test_pcm_is_rounded_and_clipped() -> None:
    data = to_s16le(np.array([0, 1, -1, 2, -2, 0.5, 1e-5], np.float32))
    assert np.frombuffer(data, "<i2").tolist() == [0, 32767, -32767, 32767, -32768, 16384, 0]


def test_wav_has_true_sizes_and_a_streamed_one_says_unknown() -> None:
    data = wav.encode(tone())
    with wave.open(io.BytesIO(data)) as sound:
        assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate(), sound.getnframes()) == (
            1,
            2,
            RATE,
            RATE,
        )
    assert wav.header(None)[4:8] == wav.header(None)[40:44] == b"\xff\xff\xff\xff"
    assert len(wav.header(None)) == 44


@pytest.mark.parametrize(("container", "codec"), FORMATS.items())
def test_common_formats_decode_to_the_same_sound(container: str, codec: str) -> None:
    clip = decode(encoded(container, codec, tone()))
    assert clip.samples.dtype == np.float32
    assert clip.duration == pytest.approx(1.0, abs=0.1)
    assert frequency_of(clip.samples) == pytest.approx(440, abs=3)
    assert np.abs(clip.samples[4_000:-4_000]).max() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (44_100, 2), (48_000, 6), (96_000, 2), (48_000, 64)])
def test_any_rate_and_channels_become_mono_24_khz_as_loud_as_they_are(rate: int, channels: int) -> None:
    data = io.BytesIO()
    with wave.open(data, "wb") as out:
        out.setparams((channels, 2, rate, 0, "NONE", ""))
        out.writeframes(to_s16le(tone(rate=rate).repeat(channels)))
    clip = decode(data.getvalue())
    assert clip.duration == pytest.approx(1.0, abs=0.01)
    assert frequency_of(clip.samples) == pytest.approx(440, abs=3)
    assert np.abs(clip.samples[4_000:-4_000]).max() == pytest.approx(0.5, abs=0.002)


def test_channels_are_averaged() -> None:
    left, right = tone(), -0.5 * tone()
    data = encoded("flac", "flac", np.stack([left, right]))
    assert np.allclose(decode(data).samples, (left + right) / 2, atol=1e-3)


def test_what_is_no_audio_is_refused() -> None:
    for data in (b"", b"x", b"#EXTM3U\nfile:///etc/passwd", b"ffconcat version 1.0", b"RIFF1234WAVE", bytes(9_999)):
        with pytest.raises(BadAudio):
            decode(data)


def test_a_damaged_end_keeps_what_was_good() -> None:
    data = encoded("mp3", "libmp3lame", tone(3.0))
    clip = decode(data[: len(data) // 2] + b"\x00" * 100)
    assert 1.0 < clip.duration < 2.0


def test_long_clips_are_refused_before_they_are_decoded_whole() -> None:
    with pytest.raises(TooLarge, match="2 seconds"):
        decode(encoded("flac", "flac", np.zeros(RATE * 600, np.float32)), max_seconds=2)


def test_a_video_with_sound_gives_its_sound_and_one_without_is_refused() -> None:
    def video(with_sound: bool) -> bytes:
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mp4") as out:
            picture = out.add_stream("mpeg4", rate=10)
            picture.width, picture.height, picture.pix_fmt = 64, 64, "yuv420p"
            sound = out.add_stream("aac", rate=RATE, layout="mono") if with_sound else None
            for _ in range(10):
                frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
                out.mux(picture.encode(frame))
            out.mux(picture.encode(None))
            if sound is not None:
                frame = av.AudioFrame.from_ndarray(tone()[None], format="fltp", layout="mono")
                frame.sample_rate = RATE
                out.mux(sound.encode(frame))
                out.mux(sound.encode(None))
        return buffer.getvalue()

    assert frequency_of(decode(video(True)).samples) == pytest.approx(440, abs=3)
    with pytest.raises(BadAudio, match="no sound"):
        decode(video(False))


def test_containers_are_told_by_their_first_bytes() -> None:
    for container, codec in FORMATS.items():
        assert container_of(encoded(container, codec, tone(0.2))) == {
            "mp4": "mov",
            "webm": "matroska",
            "adts": "aac",
        }.get(container, container)


@pytest.mark.parametrize(("container", "codec"), FORMATS.items())
def test_how_long_a_clip_is_by_its_header(container: str, codec: str) -> None:
    data = encoded(container, codec, tone(3.0))
    seconds = duration(data)
    # ADTS has no header that says it; then it is an estimate by the bitrate, or nothing.
    assert seconds is None or seconds == pytest.approx(3.0, abs=0.5 if container == "adts" else 0.1)
    assert (seconds is None) <= (container in ("adts", "webm"))
    assert duration(data[:5]) is None
    assert duration(b"") is None


@pytest.mark.parametrize("rate", [0, 1, 3_999, 2**31 - 1])
def test_a_rate_that_no_recording_has_is_refused(rate: int) -> None:
    data = wav.header(100_000, rate) + bytes(100_000)
    with pytest.raises(BadAudio, match=r"samples a second|damaged"):
        decode(data)
