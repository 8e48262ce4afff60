"""Records of a run over several starts: no duplicate or missing lines, and the values sent to W&B."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import wandb
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from tests.support.voices import wandb_history, wandb_records
from vits_trainer.config.options import TRACKERS
from vits_trainer.config.train import TrainConfig
from vits_trainer.tracking.tracker import Tracker, tracker_arguments

CONFIG = TrainConfig()


def start(folder: Path, updates: range, resumed_at: int | None = None) -> None:
    with Tracker(folder / "run", CONFIG, {}, True, resumed_at) as tracker:
        for update in updates:
            tracker.log(update, 0, {"generator/mel": update / 7})


def lines(folder: Path) -> list[int]:
    return [json.loads(line)["update"] for line in (folder / "run/metrics.jsonl").read_text().splitlines()]


def test_lines_after_the_checkpoint_are_rewritten(tmp_path: Path) -> None:
    start(tmp_path, range(1, 8))
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"update": 8, "epo')  # killed while writing
    start(tmp_path, range(5, 10), resumed_at=4)
    assert lines(tmp_path) == list(range(1, 10))


def test_new_run_moves_the_files_of_an_earlier_one_aside(tmp_path: Path) -> None:
    start(tmp_path, range(1, 4))
    start(tmp_path, range(1, 3))
    start(tmp_path, range(1, 2))
    assert lines(tmp_path) == [1]
    aside = {path.name: len(path.read_text().splitlines()) for path in (tmp_path / "run").glob("earlier-metrics*")}
    assert aside == {"earlier-metrics.jsonl": 3, "earlier-metrics.jsonl-2": 2}


def test_offline_each_start_is_a_separate_run_in_one_group(tmp_path: Path) -> None:
    start(tmp_path, range(1, 5))
    start(tmp_path, range(3, 7), resumed_at=2)
    files = sorted((tmp_path / "run/wandb").glob("offline-run-*/run-*.wandb"))
    runs = [next(r.run for r in wandb_records(file) if r.WhichOneof("record_type") == "run") for file in files]
    first, second = sorted(runs, key=lambda run: len(run.run_id))
    assert second.run_id == f"{first.run_id}-2"
    assert {run.run_group for run in runs} == {"run"}
    configs = [{item.key: json.loads(item.value_json) for item in run.config.update} for run in (first, second)]
    assert [(c["attempt"], c["resumed_at"]) for c in configs] == [(1, None), (2, 2)]
    updates = sorted([line["update"] for line in wandb_history(file)] for file in files)
    assert updates == [[1, 2, 3, 4], [3, 4, 5, 6]]  # none missing or duplicated within a run


class OnlineRun:
    """Stands in for an online W&B run."""

    def __init__(self, folder: Path) -> None:
        self.logged: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.resumed = False
        self.ended: list[int] = []
        self.dir = str(folder)
        self.url = "https://wandb.ai/me/vits_trainer/runs/1"

    def log(self, line: dict[str, Any]) -> None:
        self.logged.append(line)
        self.summary |= line

    def define_metric(self, name: str, **_: Any) -> None: ...

    def save(self, path: str, **_: Any) -> None: ...

    def finish(self, exit_code: int) -> None:
        self.ended.append(exit_code)


def test_online_the_same_run_continues_and_has_each_update_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    cloud, calls = OnlineRun(tmp_path), []

    def init(**settings: Any) -> OnlineRun:
        calls.append(settings)
        cloud.resumed = len(calls) > 1
        return cloud

    monkeypatch.setattr(wandb, "init", init)
    start(tmp_path, range(1, 6))
    start(tmp_path, range(4, 9), resumed_at=3)  # killed after 5, resumed from the checkpoint of 3
    assert len({settings["id"] for settings in calls}) == 1
    assert {(settings["mode"], settings["resume"]) for settings in calls} == {("online", "allow")}
    assert [line["update"] for line in cloud.logged] == list(range(1, 9))
    assert lines(tmp_path) == list(range(1, 9))
    assert cloud.ended == [0, 0]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with Tracker(tmp_path / "run", CONFIG, {}, False) as tracker:
        tracker.log(1, 0, {"generator/mel": 1.0})
        tracker.incidents(1, 0, [])
        tracker.flush()
    assert not (tmp_path / "run").exists()


def test_every_tracker_of_accelerate_can_be_asked_for() -> None:
    assert set(TRACKERS) == set(LOGGER_TYPE_TO_CLASS)
    for name, tracker_class in LOGGER_TYPE_TO_CLASS.items():
        project, settings = tracker_arguments(name, "project", "run")
        directory = ["folder"] if tracker_class.requires_logging_directory else []
        inspect.signature(tracker_class.__init__).bind(None, project, *directory, **settings)
