"""Checks of prepared data: the same for wavs/, shards and streamed shards, with what each must find."""

import copy
import csv
import io
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.support import audio
from tests.support.audio import encode
from tests.support.planted_faults import FAULTS, RATE_HZ, speech, write_set
from tests.support.preparation import prepare_into
from tests.support.voices import prepared_folder
from vits_trainer.config.check_data import CheckDataConfig
from vits_trainer.data.quality.pieces import map_pieces
from vits_trainer.data.quality.survey import Survey
from vits_trainer.evaluation import data_check
from vits_trainer.evaluation.clip_scores import ScoreSettings, score_piece
from vits_trainer.evaluation.data_check import CheckedData, open_data


@pytest.fixture(scope="module")
def checked_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("checked")
    dataset = write_set(root / "set")
    prepare_into(root / "wavs", dataset, check_texts=False)
    prepare_into(root / "shards", dataset, check_texts=False, shards=2)
    return root / "wavs", root / "shards"


def config_of(folder: Path, **settings: object) -> CheckDataConfig:
    return CheckDataConfig(str(folder), **{"scores": "", "processes": 1, "validation_fraction": 0, **settings})


def check(config: CheckDataConfig) -> CheckedData:
    return data_check.check(config, open_data(config))


def found(folder: Path, **settings: object) -> dict[str, list[str]]:
    checked = check(config_of(folder, **settings))
    return {checked.survey.names[one.row]: [finding.signal for finding in one.findings] for one in checked.suspicions}


def test_planted_faults_are_found_in_wavs_shards_and_streamed_shards(checked_folders: tuple[Path, Path]) -> None:
    wavs, shards = checked_folders
    of_wavs = found(wavs)
    assert of_wavs == {f"audio_{n:06d}.wav": expected for n, expected in FAULTS.items()}
    assert found(wavs, processes=2) == of_wavs
    for streaming in (False, True):
        # In shards the clips have another order, so that the other copy may be the first one.
        of_shards = found(shards, streaming=streaming)
        copies = {name for name, signals in of_shards.items() if signals == ["duplicate"]}
        assert len(copies) == 1
        assert copies < {"audio_000002.wav", "audio_000013.wav"}
        same = {name: signals for name, signals in of_wavs.items() if signals != ["duplicate"]}
        assert {name: signals for name, signals in of_shards.items() if name not in copies} == same


def test_validation_clips_are_those_of_training(checked_folders: tuple[Path, Path]) -> None:
    wavs, shards = checked_folders
    split = {"validation_fraction": 0.2, "seed": 3}
    names = open_data(config_of(wavs, **split)).held_out
    assert len(names) == 6
    assert open_data(config_of(shards, **split)).held_out == names
    rows = open_data(config_of(shards, streaming=True, **split)).held_out
    assert len(rows) == 6


def test_texts_on_both_sides_of_the_split_are_found(tmp_path: Path) -> None:
    """A list of words: each text has more clips than are kept together."""
    lines = [f"c{n}|{'yes' if n % 2 else 'no'}" for n in range(300)]
    content = encode(speech(0.5), RATE_HZ)
    dataset = audio.write_lj_speech(tmp_path / "set", lines, {f"wavs/c{n}.wav": content for n in range(300)})
    prepare_into(tmp_path / "out", dataset, check_texts=False)
    checked = check(config_of(tmp_path / "out", validation_fraction=0.05))
    shared = [one.row for one in checked.suspicions if any(finding.signal == "split" for finding in one.findings)]
    held_out = set(checked.data.held_out)
    texts = {checked.survey.texts[row] for row, name in enumerate(checked.survey.names) if name in held_out}
    expected = [
        row
        for row, name in enumerate(checked.survey.names)
        if name not in held_out and checked.survey.texts[row] in texts
    ]
    assert sorted(shared) == expected
    assert expected


def test_tables_have_all_clips_and_the_suspicious_ones_with_their_source(checked_folders: tuple[Path, Path]) -> None:
    checked = check(config_of(checked_folders[0]))
    rows = list(csv.DictReader(io.StringIO(checked.measurements_csv())))
    assert [row["clip"] for row in rows] == checked.survey.names
    assert float(rows[0]["level_dbfs"]) == pytest.approx(float(checked.survey.sound("level_dbfs")[0]), rel=1e-4)
    suspicious = list(csv.DictReader(io.StringIO(checked.suspicious_csv())))
    assert {row["source"]: row["signals"] for row in suspicious} == {
        f"c{n}": "; ".join(expected) for n, expected in FAULTS.items()
    }
    scores = [float(row["score"]) for row in suspicious]
    assert scores == sorted(scores, reverse=True)
    clips = checked.read([29, 4])
    assert {row: clip.name for row, clip in clips.items()} == {4: "audio_000004.wav", 29: "audio_000029.wav"}


@pytest.mark.slow
def test_a_recogniser_and_dnsmos_judge_recordings(tmp_path: Path) -> None:
    pytest.importorskip("speechmos")
    pytest.importorskip("pocketsphinx")
    settings = {"scores": "dnsmos,cer", "asr": "pocketsphinx"}
    checked = check(config_of(prepared_folder(tmp_path, clips=3), **settings))
    assert set(checked.scores) == {"dnsmos", "cer"}
    assert np.isfinite(checked.scores["dnsmos"]).all()
    assert len(checked.transcripts) == len(checked.survey)
    assert np.isfinite(checked.scores["cer"]).all()
    assert all(isinstance(transcript, str) for transcript in checked.transcripts)


def test_memory_grows_by_less_than_a_kilobyte_a_clip(checked_folders: tuple[Path, Path]) -> None:
    """What a survey keeps of a clip, whatever its duration."""
    data = open_data(config_of(checked_folders[0]))
    survey = Survey()
    ((_, result),) = list(map_pieces(data.pieces, partial(score_piece, settings=ScoreSettings(RATE_HZ)), 1))
    tracemalloc.start()
    for _ in range(100):
        survey.add(copy.deepcopy(result.measurements))
    kept_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept_bytes / len(survey) < 1024
