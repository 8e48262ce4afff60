"""The command check_data from a prepared folder to a folder without the clips that it found."""

import csv
from pathlib import Path

import pytest

from tests.support.planted_faults import FAULTS, write_set
from tests.support.preparation import rejected
from tests.support.random_voice import save_voice
from vits_trainer.cli.main import main
from vits_trainer.data.prepared import open_prepared


def test_the_clips_that_are_found_are_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset, out = write_set(tmp_path / "set"), tmp_path / "out"
    prepare = ["prepare_data", "--dataset", str(dataset), "--check_texts", "false", "--processes", "1"]
    assert main([*prepare, "--output_dir", str(out)]) == 0
    capsys.readouterr()
    assert main(["check_data", str(out), "--processes", "1", "--worst", "3", "--scores", ""]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.split()[:4] == ["clips", "30", "suspicious", "5"]
    assert "Warning" not in printed.out
    assert sorted(path.name for path in (out / "check_data").iterdir()) == [
        ".vits_trainer.json",
        "check_data.html", "measurements.csv", "suspicious.csv"
    ]  # fmt: skip
    page = (out / "check_data/check_data.html").read_text(encoding="utf-8")
    assert page.count("<audio") == 3
    drop = out / "check_data/suspicious.csv"
    assert main([*prepare, "--output_dir", str(tmp_path / "good"), "--drop", str(drop)]) == 0
    assert rejected(tmp_path / "good") == {f"c{n}": "dropped" for n in FAULTS}
    assert main(["check_data", str(tmp_path / "good"), "--processes", "1", "--scores", ""]) == 0
    assert list(csv.DictReader((tmp_path / "good/check_data/suspicious.csv").open())) == []
    assert open_prepared(out).rows.filename[-1] == open_prepared(tmp_path / "good").rows.filename[-1]


def test_a_voice_aligns_texts_and_a_checkpoint_is_loaded_with_its_average(
    prepared: Path, tmp_path: Path, capsys
) -> None:
    voice = save_voice(tmp_path / "voice")
    flags = ["--processes", "1", "--scores", "", "--output_dir", str(tmp_path / "results")]
    assert main(["check_data", str(prepared), "--model_name", str(voice), *flags]) == 0
    rows = list(csv.DictReader((tmp_path / "results/measurements.csv").open()))
    assert {"log_likelihood", "contrast", "hurried_fraction", "longest_token_s"} <= rows[0].keys()
    assert not (prepared / "check_data").exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["{nowhere}"], "does not exist. Create it with: vits-trainer prepare_data"),
        (["{nowhere}", "--streaming", "true"], "contains no shards.json"),
        ([], "give --data_dir, such as training"),
        (["{prepared}", "--scores", "mcd"], "--scores mcd: compares two recordings. Give dnsmos or cer"),
        (["{prepared}", "--scores", "x"], "--scores x: x is not one of"),
        (["{prepared}", "--thresholds.rate", "0"], "--thresholds.rate 0.0: must be above 0"),
        (["{prepared}", "--model_name", "{nowhere}"], "cannot load a voice"),
        (["{prepared}", "--output_dir", "{file}/x"], "cannot be written"),
        (["{prepared}", "--validation_fraction", "1"], "must be below 1"),
    ],
)
def test_invalid_calls_are_reported_in_one_line(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch, arguments: list[str], problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    names = {"prepared": prepared, "nowhere": tmp_path / "nowhere", "file": tmp_path / "file"}
    assert main(["check_data", *(word.format(**names) for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert problem in error
    assert error.count("\n") == 1
    assert not (tmp_path / "nowhere").exists()
