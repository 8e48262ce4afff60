"""Writes the speech data of the package, vits_trainer/voices/.

    python -m experiments.packaged voice CHECKPOINT   # base_en: the voice of experiments/base_voice.yaml, as fp16
    python -m experiments.packaged clips LJSPEECH     # lj_20: 20 clips of LJ Speech, at 16 kHz, as Ogg Opus

A folder is replaced as a whole.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import soundfile as sf
import soxr
from safetensors import safe_open
from safetensors.torch import save_file

from vits_trainer.cli.main import main
from vits_trainer.utils.packaged import BASE_VOICE, HUMAN_CLIPS

NOISE_SCALE = 0.333
"""Half of VITS's, as a small voice is understood better with less noise (docs/base_voice.md)."""
RATE_HZ = 16000
CLIPS, SHORTEST_S, LONGEST_S = 20, 2.5, 10.0
VOICE_LICENSE = """\
An English voice of vits_trainer, trained by experiments/base_voice.yaml. Licence: Apache-2.0, as the rest of the
package.

- Sentences: made by the grammar in experiments/base_voice.py; some contain words of pocketsphinx's dictionary (CMUdict,
  BSD licence).
- Speech: synthesized from these sentences, by espeak-ng for the first 8,237 updates and then by flite with its voice
  slt (CMU ARCTIC). flite and the voice: Copyright (c) 1999-2001 by Language Technologies Institute, Carnegie Mellon
  University; "Permission is hereby granted, free of charge, to use and distribute this software and its documentation
  without restriction". espeak-ng's licence (GPL-3.0) covers the program and its data. No part of either is contained
  here.
"""
VOICE_CARD = """\
---
language: en
license: apache-2.0
library_name: transformers
pipeline_tag: text-to-speech
tags: [vits]
---

A small English voice, 16 kHz: see LICENSE, and docs/base_voice.md.
"""
CLIPS_LICENSE = """\
20 clips of LJ Speech 1.1 (https://keithito.com/LJ-Speech-Dataset/), read by Linda Johnson for LibriVox, collected and
transcribed by Keith Ito. Public domain in the USA, recordings and texts. Resampled to 16 kHz and encoded as Ogg Opus.
"""


def export_voice(checkpoint: Path, folder: Path = BASE_VOICE) -> None:
    """Exports a checkpoint, with the weights of both networks in half precision."""
    with tempfile.TemporaryDirectory() as temporary:
        voice = Path(temporary) / "voice"
        if main(["export", str(checkpoint), "--output_dir", str(voice)]):
            raise SystemExit(1)
        for path in voice.glob("*.safetensors"):
            _halve(path)
        config = json.loads((voice / "config.json").read_text(encoding="utf-8")) | {"noise_scale": NOISE_SCALE}
        (voice / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (voice / "LICENSE").write_text(VOICE_LICENSE, encoding="utf-8")
        (voice / "README.md").write_text(VOICE_CARD, encoding="utf-8")
        files = [path for path in voice.iterdir() if path.is_file() and not path.name.startswith(".")]
        _replace(folder, files)


def _halve(path: Path) -> None:
    with safe_open(path, "pt") as file:
        metadata, weights = file.metadata(), {name: file.get_tensor(name).half() for name in file.keys()}  # noqa: SIM118
    assert all(tensor.isfinite().all() for tensor in weights.values())
    save_file(weights, path, metadata)


def encode_clips(source: Path, folder: Path = HUMAN_CLIPS) -> None:
    """Encodes the first :data:`CLIPS` clips of suitable length."""
    with tempfile.TemporaryDirectory() as temporary:
        lines, files = [], []
        for line in (source / "metadata.csv").read_text(encoding="utf-8").splitlines():
            name, _, text = line.split("|")
            samples, rate_hz = sf.read(source / "wavs" / f"{name}.wav", dtype="float32")
            if len(lines) < CLIPS and SHORTEST_S <= len(samples) / rate_hz <= LONGEST_S:
                files.append(Path(temporary) / f"{name}.opus")
                sf.write(files[-1], soxr.resample(samples, rate_hz, RATE_HZ), RATE_HZ, format="OGG", subtype="OPUS")
                lines.append(f"{name}|{text}\n")
        for name, content in (("metadata.csv", "".join(lines)), ("LICENSE", CLIPS_LICENSE)):
            files.append(Path(temporary) / name)
            files[-1].write_text(content, encoding="utf-8")
        _replace(folder, files)


def _replace(folder: Path, files: list[Path]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in files:
        shutil.copyfile(path, folder / path.name)
    print(f"{folder}: {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.2f} MB")


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["voice", "clips"])
    parser.add_argument("source", type=Path)
    arguments = parser.parse_args()
    (export_voice if arguments.what == "voice" else encode_clips)(arguments.source)


if __name__ == "__main__":
    _main()
