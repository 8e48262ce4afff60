"""Prepared data read piece by piece: the clips of wavs/ and shards, in order, whatever the number of processes."""

import os
import pickle
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.support.audio import good_utterances, voice, write_release
from tests.support.pieces import heavy_packages
from tests.support.preparation import prepare_into
from tests.support.shards import damage, write_shards
from vits_trainer.data.audio import Reason, Rejection, to_pcm16
from vits_trainer.data.prepared import open_prepared
from vits_trainer.data.quality import pieces as reading
from vits_trainer.data.quality.pieces import Piece, map_pieces, pieces_of_shards, pieces_of_wavs
from vits_trainer.data.quality.survey import measure_clips
from vits_trainer.data.streaming import open_stream
from vits_trainer.utils.errors import UnreadableShardError, VitsTrainerError


def named(piece: Piece) -> list[str]:
    return [clip.name for clip in piece.read()]


def killed(piece: Piece) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_pieces_of_wavs_and_of_shards_have_the_same_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_CLIPS_PER_PIECE", 3)
    dataset = write_release(tmp_path / "cv", good_utterances(7))
    prepare_into(tmp_path / "wavs", dataset)
    prepare_into(tmp_path / "shards", dataset, shards=2)
    wavs = pieces_of_wavs(open_prepared(tmp_path / "wavs"))
    assert [piece.clips for piece in wavs] == [3, 3, 1]
    shards = pieces_of_shards(open_stream(str(tmp_path / "shards")))
    read = [
        sorted((clip for piece in pieces for clip in piece.read()), key=lambda clip: clip.name)
        for pieces in (wavs, shards)
    ]
    assert len(read[0]) == 7
    for one, other in zip(*read, strict=True):
        assert one[:2] == other[:2]
        np.testing.assert_array_equal(one.pcm, other.pcm)


@pytest.mark.slow
def test_results_are_in_order_for_any_number_of_processes(tmp_path: Path) -> None:
    shards = pieces_of_shards(open_stream(str(write_shards(tmp_path / "set", [5, 4], group_clips=1))))
    assert len(shards) == 9
    for processes in (1, 2):
        found = list(map_pieces(shards, named, processes))
        assert [piece for piece, _ in found] == shards
        assert [names for _, names in found] == [[f"audio_{n:06d}.wav"] for n in range(9)]


def test_worker_processes_load_no_torch(tmp_path: Path) -> None:
    shards = pieces_of_shards(open_stream(str(write_shards(tmp_path / "set", [1]))))
    assert [loaded for _, loaded in map_pieces(shards, heavy_packages, 2)] == [set()]


def test_a_missing_and_a_damaged_clip_are_returned_with_the_reason(tmp_path: Path) -> None:
    prepare_into(tmp_path / "out", write_release(tmp_path / "cv", good_utterances(3)))
    (tmp_path / "out/wavs/audio_000001.wav").unlink()
    (tmp_path / "out/wavs/audio_000002.wav").write_bytes(b"no audio")
    clips = [clip for piece in pieces_of_wavs(open_prepared(tmp_path / "out")) for clip in piece.read()]
    assert isinstance(clips[0].pcm, np.ndarray)
    reasons = [clip.pcm.reason for clip in clips if isinstance(clip.pcm, Rejection)]
    assert reasons == [Reason.MISSING_FILE, Reason.UNREADABLE_AUDIO]


@pytest.mark.slow
def test_a_damaged_shard_and_a_killed_process_end_the_check_in_one_line(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set", [30])
    shards = pieces_of_shards(open_stream(str(folder)))
    with pytest.raises(VitsTrainerError, match="fewer --processes"):
        list(map_pieces(shards, killed, 2))
    damage(folder / "shards/shard_00000.parquet")
    with pytest.raises(UnreadableShardError, match=r"shard_00000.parquet: cannot be read"):
        list(map_pieces(shards, named, 1))


def test_a_piece_is_small_when_it_is_sent_to_a_process(tmp_path: Path) -> None:
    shards = pieces_of_shards(open_stream(str(write_shards(tmp_path / "set", [40] * 5, group_clips=2))))
    assert len(pickle.dumps(partial(named, shards[0]))) < 1000


def test_unreadable_and_empty_clips_have_no_measurements() -> None:
    pcm = to_pcm16(voice(0.5, 16000))
    contents = (pcm, pcm[:0], Rejection(Reason.TOO_LONG, "x"))
    clips = [reading.PreparedClip(f"c{n}", "a", "", one) for n, one in enumerate(contents)]
    measured = measure_clips(clips, 16000)
    assert np.isfinite(measured.sounds[0]).all()
    assert np.isnan(measured.sounds[1:]).all()
    assert measured.digests[0]
    assert measured.digests[1:] == [0, 0]
    reasons = {row: rejection.reason for row, rejection in measured.rejections.items()}
    assert reasons == {1: "empty-audio", 2: "too-long"}
