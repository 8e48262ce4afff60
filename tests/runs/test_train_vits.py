"""``train_vits`` from a prepared folder to a voice that transformers loads."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.support.fork_server import python
from tests.support.voices import metrics, prepared_folder, train_flags, wandb_history, wandb_records, weights
from vits_trainer.cli.main import main
from vits_trainer.config.framing import AudioSpec
from vits_trainer.config.train import LossWeights
from vits_trainer.data.dataset import PreparedClipDataset
from vits_trainer.data.prepared import open_prepared, train_validation_split
from vits_trainer.distributed.runtime import Runtime
from vits_trainer.models.parameter_names import to_original_discriminator
from vits_trainer.text.tokenizer import build_tokenizer
from vits_trainer.training.objective import Objective
from vits_trainer.training.validation import Validation
from vits_trainer.utils.cpu_threads import available_cpus

SCALARS = {
    *(f"generator/{name}" for name in ("total", "mel", "kl", "duration", "adversarial", "feature_matching")),
    *(f"discriminator/{name}" for name in ("total", "real", "fake")),
    *("grad_norm/generator", "grad_norm/discriminator", "optim/learning_rate", "data/trained", "data/rejected"),
    *("throughput/utterances_per_s", "throughput/audio_s_per_s"),
    *("time/data_wait_fraction", "time/eta_h", "memory/max_allocated_gib"),
}

SPEAK = """
import sys, torch
from transformers import VitsModel, pipeline
from safetensors.torch import load_file, save_file
model, report = VitsModel.from_pretrained(sys.argv[1], output_loading_info=True)
assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
saved = load_file(sys.argv[1] + "/model.safetensors")
assert len(saved) == len(model.state_dict()) and not any("decoder" in k and "parametrizations" in k for k in saved)
speech = pipeline("text-to-speech", model=sys.argv[1])("number speaks")
assert speech["sampling_rate"] == 16000 and speech["audio"].size > 1000
print(float(abs(speech["audio"]).max()))
"""


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(prepared, folder / "training")
    settings = {"validate_every_updates": 2, "save_every_updates": 2, "validation_samples": 1}
    assert main(["train_vits", *train_flags(folder, **settings)]) == 0
    return folder


def test_metrics_have_every_documented_name_at_each_update(trained: Path) -> None:
    lines = metrics(trained)
    assert [line["update"] for line in lines if "generator/mel" in line] == [1, 2, 3, 4]
    assert all(line.keys() >= SCALARS for line in lines if "generator/mel" in line)
    assert not [name for line in lines for name in line if name.startswith("ranks/")]  # one rank only
    eta_h = [line["time/eta_h"] for line in lines if "generator/mel" in line]
    assert min(eta_h[:3]) > eta_h[3] == 0
    validations = [line for line in lines if "validation/mel" in line]
    assert [line["update"] for line in validations] == [2, 4]
    assert validations[0]["validation/mel"] != validations[1]["validation/mel"]


def test_total_is_the_weighted_sum_of_the_logged_losses(trained: Path) -> None:
    line = metrics(trained)[0]
    weighted = 45 * line["generator/mel"] + sum(
        line[f"generator/{name}"] for name in ("kl", "duration", "adversarial", "feature_matching")
    )
    assert line["generator/total"] == pytest.approx(weighted, rel=1e-5)
    assert line["discriminator/total"] == pytest.approx(line["discriminator/real"] + line["discriminator/fake"])


def test_clips_are_counted(trained: Path) -> None:
    # 10 clips, 1 for validation: updates of 4, 4 and 1 clips, then another of 4.
    assert [line["data/trained"] for line in metrics(trained)] == [3, 6, 9, 12]  # filled evenly
    assert {line["data/rejected"] for line in metrics(trained)} == {0}


def test_offline_wandb_run_has_the_same_metrics(trained: Path) -> None:
    (file,) = (trained / "training/runs/run/wandb").glob("offline-run-*/run-*.wandb")
    history = wandb_history(file)
    assert [any(key.startswith("samples/") for key in line) for line in history] == [False, True, False, True]
    written = metrics(trained)
    assert len(history) == len(written)
    for logged, line in zip(history, written, strict=True):
        assert {key: logged[key] for key in line} == line
    records = wandb_records(file)
    (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["learning_rate"] == 1e-3
    assert config["plan"]["total_updates"] == 4
    assert config["data"]["sampling_rate"] == 16000
    assert run.job_type == "train"
    assert run.project == "vits_trainer"
    assert list(run.tags) == ["test"]
    summary = {
        item.key: json.loads(item.value_json)
        for record in records
        if record.WhichOneof("record_type") == "summary"
        for item in record.summary.update
    }
    assert summary["outcome"] == "done"
    assert summary["constant_frame_mel"] > 0
    assert [record.exit.exit_code for record in records if record.WhichOneof("record_type") == "exit"] == [0]


def test_exported_voice_speaks_in_a_fresh_process(trained: Path) -> None:
    voice = trained / "final_model"
    spoken = subprocess.run([sys.executable, "-c", SPEAK, voice], capture_output=True, text=True)
    assert spoken.returncode == 0, spoken.stderr
    assert float(spoken.stdout.split()[-1]) > 0
    assert (voice / "discriminator.safetensors").is_file()


def test_exported_weights_are_those_of_the_last_checkpoint(trained: Path) -> None:
    exported = load_file(trained / "final_model/model.safetensors")
    kept = load_file(trained / "checkpoints/checkpoint-4/generator.safetensors")
    g = kept["decoder.upsampler.0.parametrizations.weight.original0"]
    v = kept["decoder.upsampler.0.parametrizations.weight.original1"]
    folded = g * v / v.flatten(1).norm(dim=1)[:, None, None]
    torch.testing.assert_close(exported["decoder.upsampler.0.weight"], folded)
    assert torch.equal(exported["text_encoder.project.weight"], kept["text_encoder.project.weight"])


def test_run_folder_has_config_and_log(trained: Path) -> None:
    run = trained / "training/runs/run"
    assert yaml.safe_load((run / "config.yaml").read_text())["max_updates"] == 4
    assert "Baseline on the validation clips" in (run / "train.log").read_text()
    assert (run / "rejected.jsonl").read_text() == ""


def test_finetuning_starts_from_the_exported_voice_and_its_discriminator(trained: Path, tmp_path: Path) -> None:
    flags = train_flags(tmp_path, data_dir=trained / "training", run_name="again", max_updates=1)
    voice = trained / "final_model"
    tuned = yaml.safe_load((tmp_path / "miniature.yaml").read_text())
    tuned.pop("architecture")
    (tmp_path / "miniature.yaml").write_text(yaml.safe_dump(tuned))
    assert main(["train_vits", *flags, "--model_name", str(voice), "--learning_rate", "1e-30"]) == 0
    for name in ("model.safetensors", "discriminator.safetensors"):
        before, after = load_file(voice / name), load_file(tmp_path / "final_model" / name)
        assert before.keys() == after.keys()
        for key in before:
            torch.testing.assert_close(after[key], before[key], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("source", ["D_4.pth", "inside the voice's file"])
def test_finetuning_with_another_discriminator_file_needs_no_warmup(
    trained: Path, tmp_path: Path, source: str
) -> None:
    voice = tmp_path / "voice"
    shutil.copytree(trained / "final_model", voice)
    discriminator = load_file(voice / "discriminator.safetensors")
    (voice / "discriminator.safetensors").unlink()
    flags = train_flags(tmp_path, data_dir=trained / "training", run_name=f"from {source[0]}", max_updates=20)
    flags += ["--model_name", str(voice), "--learning_rate", "1e-30", "--architecture", "null"]
    if source == "D_4.pth":
        torch.save({"model": to_original_discriminator(discriminator), "iteration": 4}, tmp_path / source)
        flags += ["--discriminator_from", str(tmp_path / source)]
    else:
        weights = {f"discriminator.{name}": weight for name, weight in discriminator.items()}
        save_file(load_file(voice / "model.safetensors") | weights, voice / "model.safetensors", {"format": "pt"})
    assert main(["train_vits", *flags]) == 0
    after = load_file(tmp_path / "final_model/discriminator.safetensors")
    assert after.keys() == discriminator.keys()
    for key, weight in discriminator.items():
        torch.testing.assert_close(after[key], weight, atol=1e-6, rtol=1e-5)
    log = (trained / "training/runs" / f"from {source[0]}" / "train.log").read_text()
    assert "Only the discriminator is trained" not in log


def test_fresh_discriminator_of_a_trained_voice_is_warmed_up(trained: Path, tmp_path: Path) -> None:
    voice = tmp_path / "voice"
    shutil.copytree(trained / "final_model", voice)
    (voice / "discriminator.safetensors").unlink()
    flags = train_flags(tmp_path, data_dir=trained / "training", run_name="fresh", max_updates=20)
    assert main(["train_vits", *flags, "--model_name", str(voice), "--architecture", "null"]) == 0
    log = (trained / "training/runs/fresh/train.log").read_text()
    assert "Only the discriminator is trained for the first 2 updates" in log


def test_resumed_run_ends_with_the_uninterrupted_runs_weights(trained: Path, folder: Path) -> None:
    assert main(["train_vits", *train_flags(folder, max_updates=2)]) == 0
    flags = train_flags(folder, resume_from_checkpoint="latest")
    assert main(["train_vits", *flags]) == 0
    assert weights(folder, 4) == weights(trained, 4)
    trained_lines = [line for line in metrics(folder) if "generator/mel" in line]
    assert [line["update"] for line in trained_lines] == [1, 2, 3, 4]
    assert trained_lines[-1]["data/trained"] == 12


def test_new_run_over_existing_checkpoints_is_rejected_with_both_remedies(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train_vits", *train_flags(trained)]) == 2
    message = capsys.readouterr().err
    assert "--resume_from_checkpoint latest" in message
    assert "--checkpoint_dir" in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"batch_size": 2}, "clips in an update 4 -> 2"),
        ({"seed": 7}, "seed 1234 -> 7"),
        ({"objective": "mel"}, "objective vits -> mel"),
        ({"run_name": "other"}, "run_name run -> other"),
        ({"max_samples": 9}, "data "),
        ({"architecture.ffn_dim": 64}, "architecture.ffn_dim 32 -> 64"),
        ({"best_metric": "total"}, "best_metric mel -> total"),
        ({"batch_seconds": 9}, "seconds in an update None -> 9.0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_changes_that_must_match_are_rejected_with_old_and_new_value(
    changes: dict[str, object], expected: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = train_flags(trained, **{"resume_from_checkpoint": "latest", **changes})
    assert main(["train_vits", *flags]) == 2
    message = capsys.readouterr().err
    assert expected in message
    assert "vits-trainer export" in message


def test_allowed_changes_are_logged_with_old_and_new_value(trained: Path, folder: Path) -> None:
    shutil.copytree(trained / "checkpoints", folder / "checkpoints")
    changes = {"learning_rate": 5e-4, "batch_size": 2, "gradient_accumulation_steps": 2, "max_updates": 5}
    assert main(["train_vits", *train_flags(folder, resume_from_checkpoint="latest", **changes)]) == 0
    (line,) = [x for x in (folder / "training/runs/run/train.log").read_text().splitlines() if "was -> now" in x]
    for change in ("learning_rate 0.001 -> 0.0005", "batch_size 4 -> 2", "max_updates 4 -> 5"):
        assert change in line
    assert "seed" not in line


def test_missing_checkpoint_is_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train_vits", *train_flags(folder, resume_from_checkpoint="latest")]) == 2
    assert "contains no checkpoint" in capsys.readouterr().err


def test_only_the_newest_checkpoints_are_kept(folder: Path) -> None:
    flags = train_flags(folder, save_every_updates=1, keep_checkpoints=2)
    assert main(["train_vits", *flags]) == 0
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {"checkpoint-3", "checkpoint-4", "best.json", ".lock"}


def test_mel_objective_trains_without_discriminators(folder: Path) -> None:
    assert main(["train_vits", *train_flags(folder, objective="mel")]) == 0
    line = metrics(folder)[0]
    assert {key for key in line if key.startswith(("generator/", "discriminator/"))} == {
        "generator/mel",
        "generator/duration",
        "generator/total",
    }
    assert not (folder / "final_model/discriminator.safetensors").exists()
    assert (folder / "final_model/model.safetensors").is_file()


def test_accumulated_micro_batches_are_one_update(folder: Path) -> None:
    flags = train_flags(folder, batch_size=2, gradient_accumulation_steps=3, max_updates=2)
    assert main(["train_vits", *flags]) == 0
    # 9 clips, at most 6 per update: updates of 4 and 5 clips, in two and three micro-batches.
    assert [line["data/trained"] for line in metrics(folder) if "data/trained" in line] == [4, 9]


def test_different_sampling_rate_is_rejected_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared_folder(tmp_path, clips=3, rate_hz=22050)
    assert main(["train_vits", *train_flags(tmp_path)]) == 2
    assert "--target_sr 16000" in capsys.readouterr().err


def test_missing_folder_is_rejected_with_the_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train_vits", *train_flags(tmp_path)]) == 2
    assert "prepare_data" in capsys.readouterr().err


def test_clip_damaged_since_preparation_is_recorded_and_counted(folder: Path) -> None:
    (folder / "training/wavs/audio_000004.wav").write_bytes(b"RIFF, but not for long")
    flags = train_flags(folder, validation_fraction=0, max_updates=3, max_rejected_fraction=0.1)
    assert main(["train_vits", *flags]) == 0
    last = metrics(folder)[-1]
    # One epoch: 10 clips in three updates, one of them unreadable.
    assert (last["data/trained"], last["data/rejected"]) == (9, 1)
    (record,) = map(json.loads, (folder / "training/runs/run/rejected.jsonl").read_text().splitlines())
    assert record["clip"] == "audio_000004.wav"
    assert record["message"]


def test_failing_step_ends_the_run_and_marks_it_failed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(Objective, "generator_losses", broken)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        main(["train_vits", *train_flags(folder)])
    run = folder / "training/runs/run"
    assert "broken on purpose" in (run / "train.log").read_text()
    (file,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    codes = [r.exit.exit_code for r in wandb_records(file) if r.WhichOneof("record_type") == "exit"]
    assert codes == [1]
    assert not (folder / "final_model").exists()


def test_unreadable_validation_clip_is_recorded_and_excluded_from_metrics(folder: Path) -> None:
    """No placeholder replaces it, neither in the losses nor in the baseline of the best constant frame."""
    settings = {"max_updates": 1, "max_rejected_fraction": 0.2, "validation_fraction": 0.2, "model_name": "null"}
    _, (lost, kept) = train_validation_split(open_prepared(folder / "training"), 0.2, 64, seed=1234)
    (folder / f"training/wavs/audio_{lost:06}.wav").unlink()
    assert main(["train_vits", *train_flags(folder, **settings)]) == 0
    run = folder / "training/runs/run"
    (record,) = map(json.loads, (run / "rejected.jsonl").read_text().splitlines())
    assert (record["clip"], record["stage"], record["kind"]) == (f"audio_{lost:06}.wav", "validation", "missing-file")
    last = metrics(folder)[-1]
    assert last["data/rejected"] == 1
    spec = AudioSpec(16000)
    reader = PreparedClipDataset(open_prepared(folder / "training"), build_tokenizer(["number"]), spec, None)
    expected = Validation(Runtime("fp32", 1), Objective("mel", LossWeights(), spec, 32), reader, [kept], 0)
    assert last["validation/constant_frame_mel"] == expected.constant_frame_mel


FREE_THREADS = """
import torch
from vits_trainer.cli.main import entry_point
torch.set_num_threads(2)
entry_point()
"""


def train_with_free_threads(folder: Path, command: list[str], *flags: str) -> str:
    """Returns the log of a run in a separate process, in whose environment nothing sets the number of threads."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [*command, "train_vits", *train_flags(folder), *flags]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stderr


@pytest.mark.skipif(available_cpus() < 2, reason="needs two CPUs")
def test_number_of_cpu_threads_is_measured_once_and_kept_on_resume(folder: Path) -> None:
    new = [sys.executable, "-m", "vits_trainer"]
    log = train_with_free_threads(folder, new, "--max_updates", "1", "--save_every_updates", "1")
    chosen = int(re.search(r"CPU threads: (\d+) \(a micro-batch takes .* s with one\)", log)[1])
    assert f"on CPU, fp32, {chosen} CPU thread" in log
    state = folder / "checkpoints/checkpoint-1/state.json"
    assert json.loads(state.read_text("utf-8"))["fingerprint"]["may_change"]["cpu_threads"] == chosen
    resume = ["--max_updates", "2", "--resume_from_checkpoint", "latest"]
    resumed = train_with_free_threads(folder, forked(folder), *resume)
    assert "CPU threads:" not in resumed
    assert f"on CPU, fp32, {chosen} CPU thread" in resumed
    changed = "Settings changed since the checkpoint (was -> now): max_updates 1 -> 2; save_every_updates 1 -> 500\n"
    assert changed in resumed


def forked(folder: Path) -> list[str]:
    """Returns a command that starts with two threads, as a new process on two CPUs does."""
    (folder / "free_threads.py").write_text(FREE_THREADS)
    return [python(), str(folder / "free_threads.py")]


@pytest.mark.skipif(available_cpus() < 2, reason="needs two CPUs")
@pytest.mark.parametrize("deterministic", ["false", "true"])
def test_deterministic_runs_do_not_measure_threads(folder: Path, deterministic: str) -> None:
    log = train_with_free_threads(folder, forked(folder), "--max_updates", "1", "--deterministic", deterministic)
    assert ("CPU threads:" in log) == (deterministic == "false")
