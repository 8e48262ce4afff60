"""``prepare_data`` from the command line: exit codes, summary table and one-line errors."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.audio import MIXED_REJECTIONS, encode, mixed_utterances, voice, write_lj_speech, write_release
from vits_trainer.cli.main import main
from vits_trainer.data.audio import read_pcm16_wav


def test_summary_table_counts_every_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    utterances = mixed_utterances()
    dataset = write_release(tmp_path / "cv", [*utterances, utterances[0]])
    output_dir = tmp_path / "my voice"
    flags = ["--dataset", str(dataset), "--output_dir", str(output_dir), "--processes", "1"]
    assert main(["prepare_data", *flags]) == 0
    *rows, first, second, third, prepared, next_step, _ = capsys.readouterr().out.splitlines()
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
    assert first == "Clip good_0.mp3 -> wavs/audio_000000.wav, 0.60 s, speaker speaker-a: Silav 0."
    assert second == "Clip stereo.mp3 -> wavs/audio_000001.wav, 0.60 s, speaker speaker-a: Du deng, yek."
    assert third == "Clip good_1.mp3 -> wavs/audio_000002.wav, 0.60 s, speaker speaker-a: Silav 1."
    assert str(output_dir) in prepared
    assert next_step == f"Next: vits-trainer train_vits --data_dir '{output_dir}' --model_name facebook/mms-tts-eng"


def test_flags_are_applied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = write_release(tmp_path / "cv", mixed_utterances())
    flags = ["--min_upvotes", "0", "--max_downvotes", "1", "--max_samples", "4", "--target_sr", "8000"]
    out = ["--output_dir", str(tmp_path / "out"), "--processes", "1"]
    assert main(["prepare_data", "--dataset", str(dataset), *out, *flags]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["clips", "4"]
    assert read_pcm16_wav(tmp_path / "out" / "wavs" / "audio_000003.wav")[1] == 8000


def test_column_trimming_and_loudness_flags_are_applied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = np.concatenate([np.zeros(8000), voice(1.0, 16000), np.zeros(8000)])
    clips = {"a.wav": encode(samples, 16000), "b.wav": encode(samples / 1000, 16000, subtype="FLOAT")}
    folder = write_lj_speech(tmp_path / "set", ["name,said", "a.wav,Silav.", "b.wav,Silav."], clips)
    flags = ["--audio_column", "name", "--text_column", "said", "--trim_silence", "--min_loudness_dbfs", "-50"]
    out = ["--output_dir", str(tmp_path / "out"), "--processes", "1", "--loudness_dbfs", "-30"]
    assert main(["prepare_data", "--dataset", str(folder), *flags, *out]) == 0
    table = capsys.readouterr().out.splitlines()
    assert [row.split()[-1] for row in table if row.startswith(("clips", "  too-quiet"))] == ["1", "1"]
    pcm, _ = read_pcm16_wav(tmp_path / "out" / "wavs" / "audio_000000.wav")
    assert 17000 < len(pcm) < 18600
    assert 20 * np.log10(np.sqrt(np.mean((pcm / 32768) ** 2))) == pytest.approx(-30, abs=0.01)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [("owner/name", "Hugging Face Hub cannot be reached"), ("nowhere", "no such file or folder")],
)
def test_user_error_is_one_line_with_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, dataset: str, message: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["prepare_data", "--dataset", dataset, "--output_dir", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_no_accepted_clip_gives_exit_code_2_with_the_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = write_release(tmp_path / "cv", mixed_utterances())
    flags = ["--output_dir", str(tmp_path / "out"), "--min_upvotes", "5", "--processes", "1"]
    assert main(["prepare_data", "--dataset", str(dataset), *flags]) == 2
    assert "all clips were rejected: 10 too-few-upvotes" in capsys.readouterr().err
    assert (tmp_path / "out" / "rejected.csv").read_text().count("\n") == 11
