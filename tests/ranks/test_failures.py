"""Unreadable clips, NaN and failing ranks, on one process and on two."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.support.launch import flags_of, run
from tests.support.limits import fork_start_s, rank_timeout_s
from tests.support.voices import ended_wandb_run, metrics, prepared_folder
from vits_trainer.cli.main import main
from vits_trainer.models.voice_versions import VOICE
from vits_trainer.utils.files import mark

pytestmark = pytest.mark.ranks

BAD = b"RIFF, but not for long"
HUNDRED = 100


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hundred")
    prepared_folder(folder, clips=HUNDRED, longest_s=1.2)
    return folder / "training"


@pytest.fixture(scope="module")
def dozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dozen")
    prepared_folder(folder, clips=12)
    return folder / "training"


def damaged(data: Path, folder: Path, count: int) -> Path:
    """Returns a copy whose first ``count`` clips are not audio files."""
    (folder / "wavs").mkdir(parents=True)
    for number, file in enumerate(sorted((data / "wavs").iterdir())):
        if number < count:
            (folder / "wavs" / file.name).write_bytes(BAD)
        else:
            os.link(file, folder / "wavs" / file.name)
    for name in ("metadata.csv", "dataset.json"):
        os.link(data / name, folder / name)
    return folder


def incidents(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "training/runs/run/rejected.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("ranks", "bad", "code", "expected"),
    [
        (1, 1, 0, " trained + 1 rejected + 5 validation = 100 clips"),
        (2, 1, 0, " trained + 1 rejected + 5 validation = 100 clips"),
        (2, 5, 1, " of 100 clips cannot be used, more than --max_rejected_fraction 0.01 allows: "),
        (1, HUNDRED, 1, "5 of 100 clips cannot be used, more than --max_rejected_fraction 0.01 allows: 5 unreadable"),
    ],
)
def test_share_of_bad_clips_decides_whether_the_run_fails(
    hundred: Path, tmp_path: Path, ranks: int, bad: int, code: int, expected: str
) -> None:
    data = damaged(hundred, tmp_path / "data", bad)
    flags = flags_of(tmp_path, data, batch_size=10 // ranks, log_every_updates=10)
    ended = run(ranks, None, flags)
    assert ended.returncode == code, ended.stderr
    assert expected in ended.stderr
    assert (tmp_path / "final_model").exists() == (code == 0)
    assert {record["kind"] for record in incidents(tmp_path)} == {"unreadable-audio"}
    if bad == 1:
        (record,) = incidents(tmp_path)
        assert (record["clip"], record["kind"]) == ("audio_000000.wav", "unreadable-audio")
        assert metrics(tmp_path)[-1]["data/rejected/unreadable-audio"] == 1
        trained, rejected = (metrics(tmp_path)[-1][name] for name in ("data/trained", "data/rejected"))
        assert (trained, rejected) == (94 if record["stage"] == "read" else 95, 1)


def test_nothing_trained_is_never_a_success(hundred: Path, tmp_path: Path) -> None:
    """Even if all clips may be rejected."""
    data = damaged(hundred, tmp_path / "data", HUNDRED)
    ended = run(2, None, flags_of(tmp_path, data, max_rejected_fraction=1, validation_fraction=0, batch_size=20))
    assert ended.returncode == 1, ended.stderr
    assert "0 trained + 100 rejected + 0 validation = 100 clips. Nothing was trained: 100 unreadable" in ended.stderr
    assert len(incidents(tmp_path)) == 100
    assert ended.stderr.count("update 1  read  audio_0000") <= 10  # whole, then counts
    assert "Further incidents are not logged here" in ended.stderr
    assert not (tmp_path / "final_model").exists()


def exit_codes(folder: Path) -> list[int]:
    records = ended_wandb_run(folder / "training/runs/run")
    return [record.exit.exit_code for record in records if record.WhichOneof("record_type") == "exit"]


@pytest.mark.parametrize(("ranks", "workers"), [(1, 2), (2, 2)])
def test_step_that_raises_on_each_batch_ends_the_run_at_the_first(
    dozen: Path, tmp_path: Path, ranks: int, workers: int
) -> None:
    """Regression test: the error was once swallowed on 42,139 clips. Data workers do not keep a failed run alive."""
    flags = flags_of(tmp_path, dozen, epochs=30, data_workers=workers)
    ended = run(ranks, "fail_in_step", flags, FAIL="raises", FAIL_AT="1")
    assert ended.returncode == 1
    assert "RuntimeError: broken on purpose" in ended.stderr
    assert metrics(tmp_path) == []
    assert exit_codes(tmp_path) == [1]
    assert not (tmp_path / "final_model").exists()
    if ranks == 2:
        assert "vits-trainer: rank 1 failed: RuntimeError: broken on purpose" in ended.stderr
        assert json.loads((tmp_path / "training/runs/run/outcome.json").read_text())["outcome"].startswith("failed")


@pytest.mark.parametrize("how", ["sleeps", "dies"])
def test_missing_rank_is_reported_within_the_timeout(dozen: Path, tmp_path: Path, how: str) -> None:
    flags = flags_of(tmp_path, dozen, batch_size=2, epochs=3, rank_timeout_s=rank_timeout_s(4 * fork_start_s()))
    ended = run(2, "fail_in_step", flags, FAIL=how, FAIL_AT="2")
    assert ended.returncode == 1
    assert "vits-trainer: rank 1 died" in ended.stderr
    assert exit_codes(tmp_path) == [1]


def test_nan_on_one_rank_of_two_is_masked_on_both_reported_and_replayable(
    dozen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = flags_of(tmp_path, dozen, batch_size=6, max_updates=4, validation_fraction=0, save_every_updates=1)
    clips = {"POISON": "all", "POISON_RANK": "1", "POISON_UPDATES": "2"}
    ended = run(2, "poison_clips", flags, **clips)
    assert ended.returncode == 0, ended.stderr
    assert "weights of all 2 ranks: sha256" in ended.stderr  # logged after the comparison
    (record,) = incidents(tmp_path)
    assert (record["update"], record["kind"]) == (2, "non-finite-loss")
    assert "generator/kl is nan" in record["message"]
    # All 12 clips are in each update, and rank 1 has the longer half.
    assert len(record["clip"].split(", ")) == 6
    kept = tmp_path / "training/runs/run/nonfinite/update-000002/rank1.safetensors"
    capsys.readouterr()
    assert main(["check", "--replay", str(kept)]) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith("WRONG")
    assert "generator/kl nan" in printed.out
    assert "NaN or Inf is reproduced by: audio_" in printed.err


def test_run_of_masked_updates_only_fails_on_two_ranks(dozen: Path, tmp_path: Path) -> None:
    (tmp_path / "final_model").mkdir()
    mark(tmp_path / "final_model", VOICE)
    (tmp_path / "final_model/model.safetensors").write_text("an older voice")
    flags = flags_of(tmp_path, dozen, batch_size=2, max_updates=3, validation_fraction=0, report_to="none")
    ended = run(2, "poison_clips", flags, POISON="all", POISON_RANK="1", POISON_UPDATES="1,2,3")
    assert ended.returncode == 1, ended.stderr
    assert "Nothing was trained in 3 updates: 12 clips in masked updates and 0 rejected" in ended.stderr
    assert (tmp_path / "final_model/model.safetensors").read_text() == "an older voice"
    outcome = json.loads((tmp_path / "training/runs/run/outcome.json").read_text())["outcome"]
    assert outcome.startswith("failed: NothingTrainedError")


def test_four_consecutive_nonfinite_updates_end_the_run_with_finite_weights(dozen: Path, tmp_path: Path) -> None:
    flags = flags_of(tmp_path, dozen, batch_size=6, max_updates=20, validation_fraction=0)
    ended = run(2, "poison_clips", flags, POISON="all", POISON_RANK="1", POISON_UPDATES="3,4,5,6,7,8,9,10")
    assert ended.returncode == 1
    message = "4 consecutive updates had NaN or Inf losses or gradients, more than --max_nonfinite_updates 3"
    assert message in ended.stderr
    (folder,) = (tmp_path / "checkpoints").glob("checkpoint-*")
    assert int(folder.name.split("-")[1]) <= 6 + 3  # the fourth, and those started before it was read back
    for name in ("generator", "discriminator", "optimizer_generator", "optimizer_discriminator"):
        for tensor in load_file(folder / f"{name}.safetensors").values():
            assert tensor.isfinite().all()
    assert {record["update"] for record in incidents(tmp_path)} == {3, 4, 5, 6}
    records = ended_wandb_run(tmp_path / "training/runs/run")
    alerts = [record.alert.title for record in records if record.WhichOneof("record_type") == "alert"]
    assert alerts == ["The first incident", "The run failed"]
