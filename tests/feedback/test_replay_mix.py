"""The clips of a round of feedback."""

from pathlib import Path

from tests.support.shards import write_shards
from vits_trainer.data.audio import read_pcm16_wav
from vits_trainer.data.prepared import open_prepared
from vits_trainer.feedback.replay_mix import write_replay_mix

# Corrections


def test_clips_of_shards_are_replayed_among_corrections(tmp_path: Path) -> None:
    known = open_prepared(write_shards(tmp_path / "known", [4, 4], group_clips=3))
    new = open_prepared(write_shards(tmp_path / "new", [2], base_s=1.0))
    assert write_replay_mix(tmp_path / "mix", new, [(known, range(8))], 0.5, 2, seed=0) == 4
    mix = open_prepared(tmp_path / "mix")
    recorded = {known.recordings.read(row)[0].tobytes() for row in range(8)}
    recorded |= {new.recordings.read(row)[0].tobytes() for row in range(2)}
    assert {read_pcm16_wav(path)[0].tobytes() for path in (tmp_path / "mix/wavs").iterdir()} <= recorded
    assert len(mix.rows) == 8
