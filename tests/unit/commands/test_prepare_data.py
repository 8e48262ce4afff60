"""``prepare_data`` as it is typed: exit code, closing table, and one line for whatever is wrong."""

from pathlib import Path

import pytest

from tests.speech import MIXED_REJECTIONS, mixed_utterances, write_release
from vits_trainer.__main__ import main
from vits_trainer.recordings import read_pcm16_wav


def test_the_closing_table_says_what_came_of_every_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    utterances = mixed_utterances()
    dataset = write_release(tmp_path / "cv", [*utterances, utterances[0]])
    output_dir = tmp_path / "my voice"
    flags = ["--dataset", str(dataset), "--output_dir", str(output_dir), "--processes", "1"]
    assert main(["prepare_data", *flags]) == 0
    *rows, prepared, following = capsys.readouterr().out.splitlines()
    table = dict(row.rsplit(maxsplit=1) for row in rows)
    assert table == {
        "clips": "3",
        "hours": "0.00",
        "mean seconds": "0.60",
        "speakers": "1",
        "texts changed": "0",
        "rejected": "8",
        **{f"  {reason}": "1" for reason in MIXED_REJECTIONS.values()},
        "  too-few-upvotes": "2",
    }
    assert len({len(row) for row in rows}) == 1
    assert str(output_dir) in prepared
    assert following == f"Next: vits-trainer train_vits --data_dir '{output_dir}'"


def test_flags_reach_the_preparation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = write_release(tmp_path / "cv", mixed_utterances())
    flags = ["--min_upvotes", "0", "--max_downvotes", "1", "--max_samples", "4", "--target_sr", "8000"]
    out = ["--output_dir", str(tmp_path / "out"), "--processes", "1"]
    assert main(["prepare_data", "--dataset", str(dataset), *out, *flags]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["clips", "4"]
    assert read_pcm16_wav(tmp_path / "out" / "wavs" / "audio_000003.wav")[1] == 8000


@pytest.mark.parametrize(
    ("dataset", "says"), [("owner/name", "Hub is not read directly"), ("nowhere", "no such file or folder")]
)
def test_the_users_mistake_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dataset: str, says: str
) -> None:
    assert main(["prepare_data", "--dataset", dataset, "--output_dir", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert says in printed.err
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_nothing_left_is_exit_code_2_with_the_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = write_release(tmp_path / "cv", mixed_utterances())
    flags = ["--output_dir", str(tmp_path / "out"), "--min_upvotes", "5", "--processes", "1"]
    assert main(["prepare_data", "--dataset", str(dataset), *flags]) == 2
    assert "not one clip is left to train on: 10 too-few-upvotes" in capsys.readouterr().err
    assert (tmp_path / "out" / "rejected.csv").read_text().count("\n") == 11
