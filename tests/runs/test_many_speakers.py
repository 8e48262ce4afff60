"""``train_vits`` with several speakers: sampling temperature, resume within an epoch, metrics per speaker."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from tests.support.voices import many_speakers, metrics, train_flags, wandb_history, weights
from vits_trainer.cli.main import main
from vits_trainer.data.prepared import open_prepared, train_validation_split

SIZES = {"ava": 12, "mem": 4, "zin": 3}
SETTINGS = {
    "speaker_temperature": 0.5, "validation_fraction": 0.16, "max_updates": 8, "save_every_updates": 2,
    "validate_every_updates": 4, "validation_samples": 0, "report_to": "none",
}  # fmt: skip
CLOSING = "3 validation + 3 not drawn = 19 clips; 16 trained = 16 draws"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of 16 clips: 11 of ava, 3 of mem, 2 of zin; one clip of each is for validation."""
    folder = tmp_path_factory.mktemp("many")
    many_speakers(folder, SIZES)
    assert main(["train_vits", *train_flags(folder, **{**SETTINGS, "report_to": "wandb"})]) == 0
    return folder


def log(folder: Path) -> str:
    return (folder / "training/runs/run/train.log").read_text()


def test_log_shows_the_speakers_clips_and_their_share_of_draws(trained: Path) -> None:
    # Roots of 11, 3 and 2: 3.317, 1.732, 1.414; their sum is 6.463.
    assert (
        "3 speakers: largest 11 clips, median 3, smallest 2; at temperature 0.5 their draws are 51 %, 27 %, "
        "22 % (at 1: 69 %, 19 %, 12 %)"
    ) in log(trained)


def test_epoch_summaries_add_up_in_clips_and_in_draws(trained: Path) -> None:
    # Of 16 draws ava gets 8, so that 3 of her clips are not drawn; mem 4, zin 4 (by remainders .21, .29, .50).
    for epoch in (1, 2):
        assert f"epoch {epoch}: 13 trained + 0 rejected + {CLOSING}" in log(trained)


def speakers_table(folder: Path) -> list[dict[str, str]]:
    with (folder / "training/runs/run/speakers.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_each_speaker_has_metrics_in_curves_log_and_table(trained: Path) -> None:
    validations = [line for line in metrics(trained) if "validation/mel" in line]
    table = speakers_table(trained)
    assert [(row["update"], row["speaker"], row["clips"]) for row in table] == [
        (str(update), speaker, "1") for update in (4, 8) for speaker in ("ava", "mem", "zin")
    ]
    for line, rows in zip(validations, (table[:3], table[3:]), strict=True):
        mels = {row["speaker"]: float(row["mel"]) for row in rows}
        assert mels == {name: line[f"validation/speaker_mel/{name}"] for name in mels}
        ordered = sorted(mels, key=mels.__getitem__)
        assert line["validation/speaker_mel_worst"] == mels[ordered[2]]
        assert line["validation/speaker_mel_median"] == mels[ordered[1]]
        assert f"the worst speaker: {ordered[2]} {mels[ordered[2]]:.4f} (1 clip)" in log(trained)


def test_wandb_has_the_table_and_the_curves(trained: Path) -> None:
    (file,) = (trained / "training/runs/run/wandb").glob("offline-run-*/run-*.wandb")
    lines = [line for line in wandb_history(file) if "validation/speaker_mel/zin" in line]
    assert [line["update"] for line in lines] == [4, 8]
    tables = [{name: value for name, value in line.items() if name.startswith("speakers")} for line in lines]
    assert [table.get("speakers/nrows") or table["speakers"]["nrows"] for table in tables] == [3, 6]  # rows are added


def test_run_stopped_within_an_epoch_and_resumed_ends_with_the_same_weights(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "training", tmp_path / "training", ignore=shutil.ignore_patterns("runs"))
    assert main(["train_vits", *train_flags(tmp_path, **{**SETTINGS, "max_updates": 6})]) == 0
    cut = "+ 3 not drawn + 7 not reached before the run ended = 19 clips; 8 trained + 8 not reached = 16 draws"
    assert cut in log(tmp_path)
    flags = train_flags(tmp_path, **{**SETTINGS, "resume_from_checkpoint": "latest"})
    assert main(["train_vits", *flags]) == 0
    assert weights(tmp_path, 8) == weights(trained, 8)
    assert metrics(tmp_path)[-1]["data/trained"] == 32
    # The validation at update 6, where the first run ended, is kept; none occurs twice.
    assert [row["update"] for row in speakers_table(tmp_path)] == ["4"] * 3 + ["6"] * 3 + ["8"] * 3
    assert speakers_table(tmp_path)[6:] == speakers_table(trained)[3:]
    assert f"epoch 2: 13 trained + 0 rejected + {CLOSING}" in log(tmp_path)


def test_unreadable_clip_drawn_several_times_is_rejected_once(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "training", tmp_path / "training", ignore=shutil.ignore_patterns("runs"))
    prepared = open_prepared(tmp_path / "training")
    training, _ = train_validation_split(prepared, 0.16, 64, seed=1234)
    bad = next(name for row in training if (name := prepared.rows.filename[row]).startswith("zin"))
    (tmp_path / "training/wavs" / bad).unlink()  # one of zin's two, which share 4 of 16 draws
    settings = SETTINGS | {"max_updates": 4, "max_rejected_fraction": 0.1, "validate_every_updates": 0}
    assert main(["train_vits", *train_flags(tmp_path, **settings)]) == 0
    summary = "12 trained + 1 rejected + 3 validation + 3 not drawn = 19 clips; 14 trained + 2 rejected = 16 draws"
    assert summary in log(tmp_path)
    (record,) = map(json.loads, (tmp_path / "training/runs/run/rejected.jsonl").read_text().splitlines())
    assert record["clip"] == bad
    assert metrics(tmp_path)[-1]["data/rejected"] == 1


def test_resume_with_another_temperature_is_rejected(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = train_flags(trained, **{**SETTINGS, "resume_from_checkpoint": "latest", "speaker_temperature": 1})
    assert main(["train_vits", *flags]) == 2
    assert "speaker_temperature 0.5 -> 1.0" in capsys.readouterr().err


def test_temperature_with_one_speaker_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many_speakers(tmp_path, {"ava": 3})
    assert main(["train_vits", *train_flags(tmp_path, **SETTINGS)]) == 2
    assert "are of one speaker. Leave it out" in capsys.readouterr().err
