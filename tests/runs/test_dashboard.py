"""A complete offline W&B run, read back from its file: names, media, tables, alerts, artifacts, summary, exit."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.voices import ended_wandb_run, prepared_folder, train_flags
from vits_trainer.cli.main import main
from vits_trainer.config.serialization import flatten

CONTRACT = {
    *(f"generator/{name}" for name in ("total", "mel", "kl", "duration", "adversarial", "feature_matching")),
    *(f"discriminator/{name}" for name in ("total", "real", "fake")),
    "grad_norm/generator", "grad_norm/discriminator", "optim/learning_rate", "data/trained", "data/rejected",
    "throughput/utterances_per_s", "throughput/audio_s_per_s", "time/data_wait_fraction", "memory/max_allocated_gib",
}  # fmt: skip


def values(items: Any) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


class Run:
    """Contents of a run's file."""

    def __init__(self, run_dir: Path) -> None:
        self.files = next(run_dir.glob("wandb/offline-run-*/files"))
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.alerts: list[tuple[str, str]] = []
        self.artifacts: list[Any] = []
        self.axes: dict[str, str] = {}
        self.best: dict[str, tuple[bool, bool]] = {}
        self.config: dict[str, Any] = {}
        for record in ended_wandb_run(run_dir):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                self.history.append(values(record.history.item))
            elif kind == "summary":
                self.summary |= values(record.summary.update)
            elif kind == "alert":
                self.alerts.append((record.alert.title, record.alert.level))
            elif kind == "artifact":
                self.artifacts.append(record.artifact)
            elif kind == "metric":
                metric = record.metric
                self.axes[metric.name or metric.glob_name] = metric.step_metric
                self.best[metric.name] = (metric.summary.min, metric.summary.max)
            elif kind == "run":
                self.config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif kind == "exit":
                self.exit_code = record.exit.exit_code


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Fine-tunes a voice, which improves, with one damaged clip and with artifacts."""
    folder = tmp_path_factory.mktemp("run")
    data = prepared_folder(folder, clips=12)
    assert main(["train_vits", *train_flags(folder, run_name="base", max_updates=1)]) == 0
    (data / "wavs/audio_000005.wav").write_bytes(b"damaged")
    settings = {"model_name": folder / "final_model", "checkpoint_dir": folder / "tuned"}
    settings |= {"output_dir": folder / "better"}
    settings |= {"max_updates": 6, "validate_every_updates": 3, "save_every_updates": 3, "validation_fraction": 0.15}
    settings |= {"max_rejected_fraction": 0.2, "wandb_checkpoints": True, "validation_samples": 1, "batch_size": 4}
    settings |= {"validation_scores": "mcd,duration", "learning_rate": 2e-3, "gradient_accumulation_steps": 1}
    settings |= {"data_dir": data, "log_every_updates": 1, "run_name": "tuned", "data_workers": 0}
    settings |= {"discriminator_warmup_updates": 0}
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    assert main(["train_vits", *flags]) == 0
    return Run(data / "runs/tuned")


def test_every_documented_name_is_logged_with_the_update_as_axis(run: Run) -> None:
    logged = {name for line in run.history for name in line}
    assert logged >= CONTRACT
    assert {"validation/mel", "validation/total", "validation/mel_from_text", "validation/mcd_db"} <= logged
    assert [line["update"] for line in run.history] == [0, 1, 2, 3, 4, 5, 6]
    assert run.axes["*"] == "update"


def test_media_are_files(run: Run) -> None:
    paths = {value for line in run.history for name, value in line.items() if name.endswith("/path")}
    media = [run.files / path for path in paths if path.startswith("media/")]
    assert {path.suffix for path in media} == {".wav", ".png", ".json"}
    assert all(path.stat().st_size > 100 for path in media)


def test_recording_is_logged_once_and_speech_at_each_validation(run: Run) -> None:
    recorded = [line["update"] for line in run.history if "samples/0/recorded/path" in line]
    spoken = [line["update"] for line in run.history if "samples/0/speech/path" in line]
    assert (recorded, spoken) == ([0], [0, 3, 6])
    heights = {line["samples/0/alignment/height"] for line in run.history if "samples/0/alignment/height" in line}
    assert heights == {500}


def test_log_of_the_run_is_among_its_files(run: Run) -> None:
    assert "update 6/6  mel" in (run.files / "train.log").read_text()


def test_config_has_at_most_80_keys_and_no_paths(run: Run) -> None:
    config = {name: value for name, value in run.config.items() if name != "_wandb"}
    assert len(flatten(config)) <= 80
    assert config["learning_rate"] == 2e-3
    places = str(run.files.parents[3].parent)
    assert places not in json.dumps({name: value for name, value in config.items() if name != "model_name"})


def test_summary_keeps_the_best_value_of_each_validation_metric(run: Run) -> None:
    assert run.best["validation/mel"] == run.best["validation/mcd_db"] == (True, False)
    assert run.best["validation/utmos"] == (False, True)
    mels = [line["validation/mel"] for line in run.history if "validation/mel" in line]
    assert run.summary["validation/mel"] == pytest.approx({"min": min(mels), "last": mels[-1]})


def test_nothing_is_logged_twice_on_one_rank(run: Run) -> None:
    last = {name: value for name, value in run.history[-1].items() if isinstance(value, float) and value}
    last = {name: value for name, value in last.items() if not name.startswith(("samples/", "_"))}
    assert len(set(last.values())) == len(last)


def test_tables_have_the_damaged_clip_and_the_worst_clips(run: Run) -> None:
    tables = [json.loads(path.read_text()) for path in run.files.glob("media/table/**/*.json")]
    by_columns = {tuple(table["columns"]): table["data"] for table in tables}
    errors = by_columns["update", "epoch", "clip", "kind", "message", "stage", "traceback"]
    assert {(row[2], row[3]) for row in errors} == {("audio_000005.wav", "unreadable-audio")}
    worst = by_columns["update", "clip", "text", "heard", "duration_error", "mcd_db"]
    assert all(row[1].startswith("audio_") and row[5] > 0 for row in worst)


def test_duration_histogram_counts_every_token_of_the_samples(run: Run) -> None:
    last = run.history[-1]
    assert last["samples/durations_frames/_type"] == "histogram"
    assert sum(last["samples/durations_frames/values"]) > 10


def test_alerts_report_the_rejection_and_the_improvement(run: Run) -> None:
    assert [title for title, _ in run.alerts] == ["The first incident", "Better than before"]


def test_summary_has_the_outcome_and_the_best_checkpoint(run: Run) -> None:
    mels = {line["update"]: line["validation/mel"] for line in run.history if "validation/mel" in line}
    del mels[0]
    best = min(mels, key=mels.__getitem__)
    summary = run.summary.get("best") or {n.removeprefix("best/"): v for n, v in run.summary.items() if "best/" in n}
    assert (summary["metric"], summary["update"]) == ("mel", best)
    assert summary["value"] == pytest.approx(mels[best])
    assert Path(summary["checkpoint"]).name == f"checkpoint-{best}"
    assert Path(summary["checkpoint"]).is_dir()
    assert run.summary["outcome"] == "done"
    assert run.exit_code == 0


def test_checkpoint_artifacts_keep_their_files_in_the_run_folder(run: Run) -> None:
    checkpoints = [artifact for artifact in run.artifacts if artifact.type == "checkpoint"]
    aliases = [set(artifact.aliases) - {"best"} for artifact in checkpoints]
    assert aliases == [{"latest", "checkpoint-3"}, {"latest", "checkpoint-6"}]
    run_dir = run.files.parents[1]
    for artifact in checkpoints:
        names = {entry.path for entry in artifact.manifest.contents}
        assert {"generator.safetensors", "manifest.json"} <= names
        local = [entry.local_path for entry in artifact.manifest.contents if entry.path == "generator.safetensors"]
        assert all(Path(path).is_relative_to(run_dir) and Path(path).is_file() for path in local)
