"""Reads sources of clips, and returns their errors."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.audio import encode, voice, write_lj_speech
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.audio import Reason
from vits_trainer.data.sources.base import SourceClip
from vits_trainer.data.sources.detect import open_source
from vits_trainer.utils.errors import DataError

WAV = encode(voice(0.3, 16000), 16000)
HEADER = "client_id\tpath\tsentence\tup_votes\tdown_votes\n"


def clips_of(dataset: Path | str, **settings: int | str) -> list[SourceClip]:
    return list(open_source(PrepareConfig(dataset=str(dataset), **settings)).clips)


def reasons(clips: list[SourceClip]) -> list[Reason | None]:
    return [clip.rejection and clip.rejection.reason for clip in clips]


def refusal(dataset: Path | str, **settings: int | str) -> str:
    with pytest.raises(DataError) as caught:
        clips_of(dataset, **settings)
    return str(caught.value)


def write_table(file: Path, **columns: list[object]) -> Path:
    pq.write_table(pa.table(columns), file)
    return file


# An audio folder


def write_audio_folder(folder: Path, metadata: str, *names: str) -> Path:
    return write_lj_speech(folder, metadata.split("\n"), dict.fromkeys(names, WAV))
