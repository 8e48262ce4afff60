"""``evaluate``: voices compared with the recordings; and the same metrics during training."""

import json
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import soxr

from tests.support.voices import ended_wandb_run, many_speakers, metrics, prepared_folder, train_flags, wandb_records
from vits_trainer.cli.main import main
from vits_trainer.data.audio import read_pcm16_wav, to_pcm16, write_pcm16_wav
from vits_trainer.evaluation import recognizers
from vits_trainer.evaluation.recognizers import has_whisper

pytest.importorskip("mel_cepstral_distance", reason="the extra 'evaluate' is not installed")

SETTINGS = {"validation_scores": "mcd,f0,duration", "validation_fraction": 0.3, "validation_samples": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six clips with speech metrics of its validation clips."""
    folder = tmp_path_factory.mktemp("trained")
    prepared_folder(folder, clips=6)
    assert main(["train_vits", *train_flags(folder, **SETTINGS, validate_every_updates=2)]) == 0
    return folder


def evaluate(trained: Path, output: Path, models: list[Path], **changes: object) -> dict:
    settings = {"data_dir": trained / "training", "scores": "mcd,f0,duration", "clips": "all", **changes}
    settings |= {"models": ",".join(map(str, models)), "output_dir": output}
    assert main(["evaluate", *(word for key, value in settings.items() for word in (f"--{key}", str(value)))]) == 0
    return json.loads((output / "scores.json").read_text())


def in_noise(trained: Path, folder: Path, noise_db: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for file in (trained / "training/wavs").iterdir():
        pcm, rate_hz = read_pcm16_wav(file)
        speech = pcm.astype(np.float32) / 32768
        level = np.sqrt((speech**2).mean()) * 10 ** (-noise_db / 20)
        noisy = speech + level * rng.standard_normal(len(speech)).astype(np.float32)
        write_pcm16_wav(folder / file.name, to_pcm16(noisy), rate_hz)
    return folder


def test_voices_and_folders_of_speech_are_compared(trained: Path, tmp_path: Path, capsys) -> None:
    speech = [in_noise(trained, tmp_path / f"noise{db}", db) for db in (20, 0)]
    voice = trained / "final_model"
    result = evaluate(trained, tmp_path / "out", [speech[0], speech[1], voice])
    voices = result["voices"]
    assert list(voices) == ["recorded", *map(str, [*speech, voice])]
    for name in ("mcd_db", "log_f0_rmse", "voicing_error", "duration_error"):
        assert voices["recorded"]["figures"][name] == {"mean": 0, "low": 0, "high": 0, "clips": 6}
    less, more = (voices[str(folder)] for folder in speech)
    assert 0 < less["figures"]["mcd_db"]["mean"] < more["figures"]["mcd_db"]["mean"]
    beyond = more[f"beyond {speech[0]}"]["mcd_db"]
    assert beyond["low"] > 0
    assert beyond["mean"] == pytest.approx(more["figures"]["mcd_db"]["mean"] - less["figures"]["mcd_db"]["mean"])
    assert voices[str(voice)]["real_time_factor"] > 0
    assert less["real_time_factor"] is None
    output = capsys.readouterr().out
    assert "6 clips; means with 95 % intervals" in output
    assert f"worst clips of {voice}" in output
    assert len(list((tmp_path / "out/speech_3").glob("*.wav"))) == 6


def test_speech_of_another_format_and_rate_is_compared(trained: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "flac", tmp_path / "opus"]
    for folder in folders:
        folder.mkdir()
    for file in (trained / "training/wavs").iterdir():
        pcm, rate_hz = read_pcm16_wav(file)
        sf.write(folders[0] / f"{file.stem}.flac", pcm, rate_hz)
        resampled = soxr.resample(pcm.astype(np.float32) / 32768, rate_hz, 24000)
        sf.write(folders[1] / f"{file.stem}.opus", resampled, 24000, format="OGG", subtype="OPUS")
    voices = evaluate(trained, tmp_path / "out", folders, scores="mcd,duration")["voices"]
    same, other = (voices[str(folder)]["figures"] for folder in folders)
    assert same["mcd_db"]["mean"] == 0
    assert other["mcd_db"]["mean"] > 0
    assert other["duration_error"]["mean"] < 0.02
    (tmp_path / "opus/audio_000000.opus").write_bytes(b"no audio")
    flags = ["--data_dir", str(trained / "training"), "--models", str(tmp_path / "opus"), "--clips", "all"]
    assert main(["evaluate", *flags, "--output_dir", str(tmp_path / "again")]) == 2


def test_worst_clips_come_first(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained / "training/wavs", tmp_path / "speech")
    noisy = in_noise(trained, tmp_path / "noisy", 0)
    shutil.copy(noisy / "audio_000003.wav", folder)
    clips = evaluate(trained, tmp_path / "out", [folder])["voices"][str(folder)]["clips"]
    assert clips[0]["clip"] == "audio_000003.wav"


def test_held_out_clips_are_the_validation_clips_of_training(trained: Path, tmp_path: Path) -> None:
    settings = {"clips": "held_out", "validation_fraction": 0.3}
    result = evaluate(trained, tmp_path / "out", [trained / "final_model"], **settings)
    evaluated_clips = {clip["clip"] for clip in result["voices"]["recorded"]["clips"]}
    in_training = json.loads((trained / "training/runs/run/worst_clips.json").read_text())
    assert evaluated_clips == {clip["clip"] for clip in in_training}
    assert len(evaluated_clips) == 2


def test_speakers_are_chosen_and_have_a_table_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = many_speakers(tmp_path, {"ana": 3, "mem": 3, "zin": 3})
    flags = train_flags(tmp_path, only_speakers="ana,mem", max_updates=1, batch_size=2, validation_samples=0)
    assert main(["train_vits", *flags]) == 0
    voice = tmp_path / "final_model"
    settings = ["--models", str(voice), "--data_dir", str(data), "--output_dir", str(tmp_path / "out")]
    settings += ["--scores", "mcd", "--clips", "all"]
    capsys.readouterr()
    assert main(["evaluate", *settings]) == 2
    message = capsys.readouterr().err
    assert f"{voice} has no speaker zin. Exclude their clips with --only_speakers; the voice has ana, mem." in message
    assert not (tmp_path / "out").exists()
    assert main(["evaluate", *settings, "--only_speakers", "ana,mem"]) == 0
    clips = json.loads((tmp_path / "out/scores.json").read_text())["voices"][str(voice)]["clips"]
    assert {clip["clip"].partition("_")[0] for clip in clips} == {"ana", "mem"}
    (table,) = re.findall(r"by speaker\n.*\n(ana .*)\n(mem .*)\n", capsys.readouterr().out)
    for name, line in zip(("ana", "mem"), table, strict=True):
        own = [clip["figures"]["mcd_db"] for clip in clips if clip["clip"].startswith(name)]
        assert line.split() == [name, f"{sum(own) / 3:.3f}", "3"]


def test_weights_and_biases_run_of_an_evaluation(trained: Path, tmp_path: Path) -> None:
    evaluate(trained, tmp_path / "out", [trained / "final_model"], report_to="wandb", max_clips=2)
    (file,) = (tmp_path / "out").glob("wandb/offline-run-*/run-*.wandb")
    keys = {
        "/".join(item.nested_key) or item.key
        for record in wandb_records(file)
        if record.WhichOneof("record_type") == "summary"
        for item in record.summary.update
    }
    assert f"{trained / 'final_model'}/mcd_db" in keys


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"models": "EMPTY"}, "lacks 6 of 6 clips"),
        ({"scores": "mcd,mdc"}, "mdc is not one of mcd, f0"),
        ({"models": ""}, "--models is empty"),
        ({"data_dir": "nowhere"}, "prepare_data"),
    ],
)
def test_invalid_settings_are_reported(
    trained: Path, tmp_path: Path, capsys, changes: dict[str, str], expected: str
) -> None:
    (tmp_path / "empty").mkdir()
    settings = {"models": trained / "final_model", "data_dir": trained / "training", "clips": "all", **changes}
    if settings["models"] == "EMPTY":
        settings["models"] = tmp_path / "empty"
    settings["output_dir"] = tmp_path / "out"
    assert main(["evaluate", *(word for key, value in settings.items() for word in (f"--{key}", str(value)))]) == 2
    assert expected in capsys.readouterr().err


def test_recognizer_that_fails_on_the_recordings_is_reported(trained: Path, tmp_path: Path, caplog) -> None:
    pytest.importorskip("pocketsphinx", reason="the extra 'evaluate' is not installed")
    evaluate(trained, tmp_path / "out", [trained / "final_model"], scores="cer", max_clips=2)
    assert "recognizes too little of the recordings themselves" in caplog.text


def test_metrics_are_logged_at_each_validation_with_the_worst_clips(trained: Path) -> None:
    lines = {line["update"]: line for line in metrics(trained)}
    for update in (2, 4):
        assert {"validation/mcd_db", "validation/duration_error"} <= lines[update].keys()
    run = trained / "training/runs/run"
    worst = json.loads((run / "worst_clips.json").read_text())
    means = {name: np.mean([c["figures"][name] for c in worst if name in c["figures"]]) for name in worst[0]["figures"]}
    assert lines[4]["validation/mcd_db"] == pytest.approx(means["mcd_db"])
    logged = {
        "/".join(item.nested_key) or item.key
        for record in ended_wandb_run(run)
        if record.WhichOneof("record_type") == "history"
        for item in record.history.item
    }
    assert {"worst clips/_type", "samples/durations_frames/_type"} <= logged


def best(folder: Path) -> dict:
    return json.loads((folder / "checkpoints/best.json").read_text())


def test_best_checkpoint_is_selected_by_the_metric_and_kept(tmp_path: Path) -> None:
    prepared_folder(tmp_path)
    settings = {"best_metric": "mcd_db", "validate_every_updates": 1, "save_every_updates": 0, "keep_checkpoints": 1}
    flags = train_flags(tmp_path, **settings, validation_fraction=0.2, max_updates=5, report_to="none")
    assert main(["train_vits", *flags]) == 0
    result = {line["update"]: line["validation/mcd_db"] for line in metrics(tmp_path) if "validation/mcd_db" in line}
    least = min(result, key=result.__getitem__)
    assert best(tmp_path) == {"checkpoint": f"checkpoint-{least}", "validation/mcd_db": result[least]}
    assert (tmp_path / f"checkpoints/checkpoint-{least}").is_dir()


def test_early_stopping_ends_the_run_and_exports_the_best_checkpoint(tmp_path: Path, capsys, caplog) -> None:
    """With a learning rate that ruins the voice, the first validation is the best."""
    prepared_folder(tmp_path)
    settings = {"patience": 2, "validate_every_updates": 1, "save_every_updates": 0, "best_metric": "total"}
    flags = train_flags(tmp_path, **settings, validation_fraction=0.2, max_updates=50, learning_rate=0.5)
    assert main(["train_vits", *flags]) == 0
    totals = {line["update"]: line["validation/total"] for line in metrics(tmp_path) if "validation/total" in line}
    least = min(totals, key=totals.__getitem__)
    assert max(totals) == least + 2 < 50
    assert f"Early stopping at update {least + 2}: validation/total has not improved on" in caplog.text
    assert f"(update {least}) for 2 validations" in caplog.text
    assert f"Exporting the weights of the best checkpoint, {tmp_path}/checkpoints/checkpoint-{least}." in caplog.text
    exported = tmp_path / "exported_best"
    assert main(["export", str(tmp_path / f"checkpoints/checkpoint-{least}"), "--output_dir", str(exported)]) == 0
    same = [(tmp_path / "final_model" / name).read_bytes() == (exported / name).read_bytes()
            for name in ("model.safetensors", "discriminator.safetensors")]  # fmt: skip
    assert all(same)
    outcome = json.loads((tmp_path / "training/runs/run/outcome.json").read_text())
    assert outcome == {"outcome": "done", "update": least + 2}
    # The best checkpoint of a resumed run may be missing: then this is logged, and the last update is exported.
    shutil.move(tmp_path / f"checkpoints/checkpoint-{least}", tmp_path / "elsewhere")
    # Nothing is left to train on resume.
    resumed = [*flags, "--resume_from_checkpoint", "latest"]
    assert main(["train_vits", *resumed]) == 0
    assert f"checkpoint-{least}, the best checkpoint, does not exist" in caplog.text
    assert max(line["update"] for line in metrics(tmp_path)) == least + 2


@pytest.mark.skipif(not has_whisper(), reason="the extra 'asr' is not installed")
def test_error_rate_selects_the_checkpoint_of_an_english_voice_and_a_resume_keeps_it(
    tmp_path: Path, monkeypatch, caplog
) -> None:
    prepared_folder(tmp_path)
    settings = {"language": "en", "validate_every_updates": 1, "save_every_updates": 1, "validation_fraction": 0.2}
    flags = train_flags(tmp_path, **settings, max_updates=2, report_to="none")
    assert main(["train_vits", *flags]) == 0
    assert "The character error rate (validation/cer, by whisper-tiny.en) selects the best checkpoint." in caplog.text
    results = {line["update"]: line for line in metrics(tmp_path) if "validation/cer" in line}
    assert list(results) == [1, 2]
    # A miniature voice is not understood: the mel decides between such voices.
    assert all(line["validation/cer"] > 0.5 for line in results.values())
    least = min(results, key=lambda update: results[update]["validation/mel"])
    expected = {"checkpoint": f"checkpoint-{least}", "validation/cer": results[least]["validation/cer"]}
    assert best(tmp_path) == expected
    config = json.loads((tmp_path / f"checkpoints/checkpoint-{least}/state.json").read_text())["fingerprint"]
    assert config["must_match"]["best_metric"] == "cer"
    # On a machine without the recognizer, a resumed run does not silently change the metric.
    monkeypatch.setattr(recognizers, "is_installed", lambda need: False)
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    resumed = [*flags, "--resume_from_checkpoint", "latest", "--max_updates", "3"]
    assert main(["train_vits", *resumed]) == 2
    assert len({line["update"] for line in metrics(tmp_path)}) == 2


def test_patience_starts_after_the_discriminators_warmup(tmp_path: Path) -> None:
    prepared_folder(tmp_path)
    settings = {"patience": 2, "validate_every_updates": 1, "save_every_updates": 0, "discriminator_warmup_updates": 4}
    flags = train_flags(tmp_path, **settings, validation_fraction=0.2, max_updates=7)
    assert main(["train_vits", *flags]) == 0
    mels = {line["update"]: line["validation/mel"] for line in metrics(tmp_path) if "validation/mel" in line}
    assert len({mels[update] for update in range(1, 5)}) == 1
    assert max(mels) >= 6
    state = json.loads((tmp_path / f"checkpoints/checkpoint-{max(mels)}/state.json").read_text())["state"]
    assert state["selection"]["best_update"] > 4


def test_tensorboard_and_trackio_get_the_same_metrics(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    if find_spec("trackio") is None:
        pytest.skip("no trackio")
    prepared_folder(tmp_path)
    assert main(["train_vits", *train_flags(tmp_path, report_to="tensorboard,trackio")]) == 0
    run = tmp_path / "training/runs/run"
    assert not (run / "wandb").exists()
    lines = {line["update"]: line for line in metrics(tmp_path)}
    events = reader.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    written = {event.step: event.value for event in events.Scalars("generator/mel")}
    assert written == {update: pytest.approx(line["generator/mel"], rel=1e-6) for update, line in lines.items()}
    assert list((run / "trackio").rglob("*.db"))


def test_missing_tracker_package_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(__import__("sys").modules, "trackio", None)
    prepared_folder(tmp_path)
    assert main(["train_vits", *train_flags(tmp_path, report_to="trackio")]) == 2
    assert "pip install trackio" in capsys.readouterr().err
