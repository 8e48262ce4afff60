"""What a run says of its clips before training: the speakers of an update of streamed shards."""

import json
from pathlib import Path

import numpy as np

from vits_trainer.config.framing import AudioSpec
from vits_trainer.config.train import TrainConfig
from vits_trainer.data.shards import Manifest, ShardWriter
from vits_trainer.data.training_data import open_training_data


def write_sorted_shards(folder: Path, order: np.ndarray) -> Path:
    """Shards of 40 speakers with 16 clips each, in this order; a row group has 16 clips."""
    (folder / "shards").mkdir(parents=True)
    with ShardWriter(folder / "shards" / "shard_00000.parquet", 16000, "pcm16") as writer:
        for clip in order.tolist():
            writer.add(f"c{clip}.wav", np.zeros(1024 * 64, np.int16), f"Text {clip}.", f"s{clip // 16}")
        record = writer.close()
    Manifest(16000, "pcm16", (record,)).write(folder)
    summary = {"sampling_rate": 16000, "speaker_clips": {f"s{n}": 16 for n in range(40)}, "characters": "T"}
    (folder / "dataset.json").write_text(json.dumps(summary))
    return folder


def line_of(folder: Path, **settings: object) -> str | None:
    data = open_training_data(TrainConfig(data_dir=str(folder), streaming=True, validation_fraction=0.0, **settings))
    return data.update_speakers(data.sampler(AudioSpec(16000), 1))


def test_the_speakers_of_the_first_update_are_counted_and_sorted_shards_named(tmp_path: Path) -> None:
    settings = {"batch_size": 16, "gradient_accumulation_steps": 1, "streaming_window": 1}
    by_speaker = write_sorted_shards(tmp_path / "sorted", np.arange(640))
    line = line_of(by_speaker, **settings)
    assert line.startswith("The first update has 1 speaker; 16 of its 16 clips are of one.")
    assert "The shards are sorted by speaker: prepare them again" in line
    shuffled = write_sorted_shards(tmp_path / "shuffled", np.random.default_rng(0).permutation(640))
    line = line_of(shuffled, **settings)
    speakers = int(line.split()[4])
    assert 10 <= speakers <= 16
    assert line.endswith("clips are of one.")
