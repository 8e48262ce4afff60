"""Prepared folders of synthetic clips."""

import json
from pathlib import Path

import numpy as np

from tests.support.audio import voice
from vits_trainer.config.framing import AudioSpec
from vits_trainer.data.audio import to_pcm16, write_pcm16_wav
from vits_trainer.data.dataset import Clip, PreparedClipDataset
from vits_trainer.data.prepared import open_prepared
from vits_trainer.data.sampler import MicroBatchSpec
from vits_trainer.text.tokenizer import build_tokenizer

SPEC = AudioSpec(16000)
PLACE = MicroBatchSpec((0, 1), 0, 0, True)
SILENCE = Clip("", np.zeros(1, np.int64), np.zeros(512, np.int16), 0)


def write_clip(path: Path, samples: int, rate: int = 16000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_pcm16_wav(path, to_pcm16(voice(samples / rate, rate)), rate)


def write_folder(root: Path, lines: list[str], summary: dict | None = None) -> Path:
    root.mkdir(exist_ok=True)
    (root / "metadata.csv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="")
    (root / "dataset.json").write_text(json.dumps(summary or {"sampling_rate": 16000}))
    return root


def reader_of(
    root: Path, speaker_ids: dict[str, int] | None = None, characters: str = "ab 0123456789"
) -> PreparedClipDataset:
    return PreparedClipDataset(open_prepared(root), build_tokenizer([characters]), SPEC, speaker_ids)
