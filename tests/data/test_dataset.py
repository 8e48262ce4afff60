"""Clips and incidents, padding, and the placeholder batch."""

import numpy as np
import pytest
import torch

from tests.support.audio import voice
from tests.support.prepared_data import PLACE, SILENCE, SPEC, reader_of, write_clip, write_folder
from vits_trainer.data.audio import to_pcm16
from vits_trainer.data.clip_accounting import Incident
from vits_trainer.data.dataloader import build_dataloader
from vits_trainer.data.dataset import Clip, collate
from vits_trainer.data.sampler import MicroBatchSpec


@pytest.fixture
def folder(tmp_path):
    for n in range(6):
        write_clip(tmp_path / "wavs" / f"{n}.wav", 8000 + 700 * n)
    return write_folder(tmp_path, [f"{n}.wav|ab {n}" for n in range(6)])


def test_clip_is_cut_to_whole_frames(folder):
    clip = reader_of(folder).read(1)
    assert isinstance(clip, Clip)
    assert clip.clip_id == "1.wav"
    assert clip.tokens.tolist() == reader_of(folder).tokenizer("ab 1").input_ids
    assert len(clip.pcm) == 8700 // 256 * 256
    assert clip.pcm.tolist() == to_pcm16(voice(8700 / 16000, 16000)).tolist()[: len(clip.pcm)]
    assert clip.speaker_id is None


def test_speakers_are_mapped_to_ids(tmp_path):
    write_clip(tmp_path / "wavs" / "0.wav", 8000)
    write_folder(tmp_path, ["0.wav|ab|mem"])
    assert reader_of(tmp_path, {"ava": 0, "mem": 1}).read(0).speaker_id == 1


@pytest.mark.parametrize(
    ("reason", "samples", "rate", "text"),
    [
        ("wrong-rate", 8000, 22050, "ab"),
        ("no-known-characters", 8000, 16000, "€€"),
        ("too-short", 511, 16000, "a"),
        ("text-too-long", 8 * 256, 16000, "abab"),  # trap 6: 9 tokens, 8 frames
    ],
)
def test_unusable_clip_is_an_incident_with_its_reason(tmp_path, reason, samples, rate, text):
    write_clip(tmp_path / "wavs" / "bad.wav", samples, rate)
    write_folder(tmp_path, [f"bad.wav|{text}"])
    record = reader_of(tmp_path).read(0)
    assert isinstance(record, Incident)
    assert (record.clip, record.kind) == ("bad.wav", reason)


def test_trap_6_text_that_exactly_fits_is_kept(tmp_path):
    write_clip(tmp_path / "wavs" / "0.wav", 9 * 256)
    write_folder(tmp_path, ["0.wav|abab"])
    assert len(reader_of(tmp_path).read(0).tokens) == 9


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (None, "missing-file"),
        (b"", "unreadable-audio"),
        (b"no wave", "unreadable-audio"),
        ("truncated", "truncated-audio"),
    ],
)
def test_unreadable_clip_is_an_incident(tmp_path, content, kind):
    path = tmp_path / "wavs" / "bad.wav"
    write_clip(path, 8000)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:3000] if content == "truncated" else content)
    write_folder(tmp_path, ["bad.wav|ab"])
    record = reader_of(tmp_path).read(0)
    assert isinstance(record, Incident)
    assert record.kind == kind
    assert "bad.wav" in record.message
    assert record.traceback == ""  # an expected error


def test_unexpected_error_of_a_clip_is_an_incident_with_its_traceback(folder, monkeypatch):
    """It passes through a DataLoader, whose iterator an exception would end."""

    def broken(tokenizer, text):
        if text == "ab 2":
            raise ZeroDivisionError("unexpected")
        return np.array([1, 2])

    monkeypatch.setattr("vits_trainer.data.dataset.encode", broken)
    specs = [MicroBatchSpec((n,), 0, n, True) for n in range(6)]
    batches = list(build_dataloader(reader_of(folder), specs, workers=2))
    assert [len(batch.clip_ids) for batch in batches] == [1, 1, 0, 1, 1, 1]
    (record,) = batches[2].rejections
    assert (record.clip, record.stage, record.kind) == ("2.wav", "read", "ZeroDivisionError")
    assert record.message == "unexpected"
    assert "in broken" in record.traceback


def test_clip_outside_the_folder_is_an_incident(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "secret.wav"
    write_clip(elsewhere, 8000)
    (folder / "wavs" / "3.wav").unlink()
    (folder / "wavs" / "3.wav").symlink_to(elsewhere)
    assert reader_of(folder).read(3).kind == "path-outside"


def test_batch_is_padded_to_a_common_size_and_keeps_incidents():
    clips = [
        Clip("a", np.array([1, 2, 3]), np.full(512, 16384, np.int16), 4),
        Incident("x", "read", "too-short", "3 samples"),
        Clip("b", np.array([5]), np.full(5 * 256, -32768, np.int16), 0),
    ]
    batch = collate(clips, PLACE, SPEC, SILENCE)
    assert batch.tokens.tolist() == [[1, 2, 3, 0], [5, 0, 0, 0]]
    assert batch.token_lengths.tolist() == [3, 1]
    assert batch.frame_lengths.tolist() == [2, 5]
    assert batch.speaker_ids.tolist() == [4, 0]
    assert batch.clip_ids == ("a", "b")
    assert batch.waveform.dtype == torch.int16  # half as many bytes to copy
    waveform = batch.to(torch.device("cpu")).waveform
    assert waveform.shape == (2, 8 * 256)
    assert waveform[0, :512].unique().tolist() == [0.5]
    assert waveform[0, 512:].unique().tolist() == [0.0]
    assert waveform[1, : 5 * 256].unique().tolist() == [-1.0]
    assert waveform[1, 5 * 256 :].unique().tolist() == [0.0]
    assert batch.audio_s == (512 + 5 * 256) / 16000
    assert [r.clip for r in batch.rejections] == ["x"]
    assert batch.spec == PLACE
    assert batch.to(torch.device("cpu")).clip_ids == batch.clip_ids


def test_trimmed_batch_is_no_longer_than_its_longest_clip():
    clips = [
        Clip("a", np.array([1, 2, 3, 4, 5]), np.ones(512, np.int16), None),
        Clip("b", np.array([5]), np.ones(5 * 256, np.int16), None),
    ]
    trimmed = collate(clips, PLACE, SPEC, SILENCE).trimmed(SPEC.hop)
    assert trimmed.tokens.shape == (2, 5)
    assert trimmed.waveform.shape == (2, 5 * 256)


@pytest.mark.parametrize(
    "records", [[], [Incident("x", "read", "too-short", "3 samples")]], ids=["no clip", "unusable clip"]
)
def test_batch_without_usable_clips_is_a_placeholder_of_silence(records):
    batch = collate(records, PLACE, SPEC, SILENCE)
    assert batch.clip_ids == ()
    assert batch.audio_s == 0
    assert batch.waveform.unique().tolist() == [0]
    assert (batch.frame_lengths.tolist(), batch.token_lengths.tolist()) == ([2], [1])
    assert batch.rejections == tuple(records)
