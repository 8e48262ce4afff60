"""The training process of the feedback app, with scripts in place of train_feedback."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vits_trainer.config.feedback import FeedbackAppConfig
from vits_trainer.feedback import views
from vits_trainer.feedback.decision import Decision, MetricChange
from vits_trainer.feedback.training_process import (
    Progress,
    Stage,
    TrainingProcess,
    outcome,
    read_updates,
    train_feedback_command,
    verdict_file,
)
from vits_trainer.utils.errors import DataError

VERDICT = {
    "accepted": True,
    "words": "Accepted: corrections 1.23 -> 0.95.",
    "corrections": {"before": 1.23, "after": 0.95},
    "held_out": {"before": 0.8, "after": 0.801},
    "learnt": ["one", "two"],
    "version": 2,
}
ACCEPTED = Decision(True, VERDICT["words"], MetricChange(1.23, 0.95), MetricChange(0.8, 0.801), ("one", "two"), 2)  # type: ignore[arg-type]
SLEEPS = "import time; print('update 1/4', flush=True); time.sleep(60)"
IGNORES_SIGTERM = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPS}"


class Started:
    """A training process that runs the given Python source."""

    def __init__(self, folder: Path, source: str) -> None:
        script = folder / "script.py"
        script.write_text(source, encoding="utf-8")
        self.verdict = folder / "verdict.json"
        self.process = TrainingProcess([sys.executable, str(script)], folder)
        self.process.start()

    def until(self, *stages: Stage, line: str = "") -> Progress:
        for _ in range(1200):
            progress = self.process.progress()
            if progress.stage in stages and any(line in shown for shown in progress.lines or ("",)):
                return progress
            time.sleep(0.05)
        raise AssertionError(f"still {progress} after 60 s")

    def end(self) -> Progress:
        return self.until(*set(Stage) - {Stage.IDLE, Stage.RUNNING, Stage.STOPPING})


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Started]]:
    processes: list[Started] = []
    yield processes
    for one in processes:
        one.process.close(5)


def write_run(work_dir: Path, total_updates: int, updates: list[int]) -> Path:
    """Writes the files of a run as train_vits does."""
    run = work_dir / "runs/a-run"
    run.mkdir(parents=True)
    (run / "facts.json").write_text(json.dumps({"plan": {"total_updates": total_updates}}))
    (run / "metrics.jsonl").write_text("".join(f'{{"update": {update}}}\n' for update in updates) + '{"upd')
    return run


def test_updates_are_read_from_the_runs_files(tmp_path: Path) -> None:
    assert read_updates(tmp_path, since=0) == (0, 0)
    run = write_run(tmp_path, 40, [])
    assert read_updates(tmp_path, since=0) == (0, 40)
    (run / "metrics.jsonl").write_text('{"update": 41}\n')  # the plan was shortened since
    assert read_updates(tmp_path, since=0) == (40, 40)
    assert read_updates(tmp_path, since=time.time() + 60) == (0, 0)
    (run / "facts.json").write_text("{")
    assert read_updates(tmp_path, since=0) == (0, 0)


def writes_verdict(verdict: object, folder: Path, exit_code: int) -> str:
    path = str(folder / "verdict.json")
    return f"open({path!r}, 'w').write({json.dumps(verdict)!r}); print('the last line'); raise SystemExit({exit_code})"


def test_command_has_only_the_settings_that_are_set() -> None:
    command = train_feedback_command(FeedbackAppConfig())
    assert command[1:4] == ["-m", "vits_trainer", "train_feedback"]
    assert command[4:] == [
        "--feedback_dir=training/feedback",
        "--model_dir=training/final_model",
        "--output_dir=training/feedback_model",
    ]
    more = train_feedback_command(FeedbackAppConfig(data_dir="-a b", epochs=3, learning_rate=1e-4))
    assert more[7:] == ["--data_dir=-a b", "--epochs=3", "--learning_rate=0.0001"]


def test_verdict_file_is_in_the_work_folder() -> None:
    assert verdict_file("training/feedback_model") == Path("training/feedback_model_work/verdict.json")
    assert verdict_file("training/feedback_model/") == Path("training/feedback_model_work/verdict.json")
    assert verdict_file(".") == Path(f"{Path.cwd()}_work/verdict.json")


def test_progress_is_reported_while_it_runs(tmp_path: Path, started: list[Started]) -> None:
    source = (
        "import sys, time\nfor n in range(30): print('line', n)\n"
        "sys.stderr.write('bar 1\\rbar 2\\r'); print('update 12/40  mel 0.9 ...', flush=True)\ntime.sleep(60)"
    )
    write_run(tmp_path, total_updates=40, updates=[1, 10, 12])
    started.append(Started(tmp_path, source))
    shown = started[0].until(Stage.RUNNING, line="update")
    assert (shown.update, shown.total_updates, shown.elapsed_s > 0) == (12, 40, True)
    assert len(shown.lines) == 15
    assert {"bar 1", "bar 2", "update 12/40 mel 0.9 ..."} <= set(shown.lines)
    html = views.training_status(shown)
    assert '<progress value="12" max="40"' in html
    assert "update 12 of 40" in html


@pytest.mark.parametrize("accepted", [True, False])
def test_verdict_is_read_with_its_metrics(tmp_path: Path, started: list[Started], accepted: bool) -> None:
    verdict = VERDICT | {"accepted": accepted, "words": "<b>Mel 1.23 to 0.95.</b>"}
    started.append(Started(tmp_path, writes_verdict(verdict, tmp_path, 0 if accepted else 1)))
    ended = started[0].end()
    assert ended.stage is (Stage.ACCEPTED if accepted else Stage.REFUSED)
    assert ended.message == "<b>Mel 1.23 to 0.95.</b>"
    html = views.training_status(ended)
    assert "&lt;b&gt;Mel 1.23 to 0.95.&lt;/b&gt;" in html
    assert "<td>1.230</td><td>0.950</td>" in html
    assert "<td>0.800</td><td>0.801</td>" in html
    assert ("trained on 2 corrections" in html) is accepted
    assert ("version 2" in html) is accepted


@pytest.mark.parametrize(
    ("source", "stage", "message"),
    [
        ("print('noise'); print('The voice: there')", Stage.NOTHING_NEW, "The voice: there"),
        ("raise SystemExit('vits-trainer: It did not fit.')", Stage.FAILED, "It did not fit."),
        ("print('vits-trainer: no correction'); raise SystemExit(2)", Stage.MISTAKE, "no correction"),
        ("raise SystemExit(1)", Stage.FAILED, "It ended with exit code 1 and no message."),
        ("import os; os.kill(os.getpid(), 9)", Stage.FAILED, "It ended with exit code -9 and no message."),
    ],
)
def test_end_without_a_verdict(tmp_path: Path, started: list[Started], source: str, stage: Stage, message: str) -> None:
    started.append(Started(tmp_path, source))
    ended = started[0].end()
    assert (ended.stage, ended.message, ended.decision) == (stage, message, None)


def test_verdict_of_an_earlier_run_is_ignored(tmp_path: Path, started: list[Started]) -> None:
    (tmp_path / "verdict.json").write_text(json.dumps(VERDICT))
    started.append(Started(tmp_path, "print('no verdict'); raise SystemExit(1)"))
    ended = started[0].end()
    assert (ended.stage, ended.decision) == (Stage.FAILED, None)


def test_only_one_process_runs_at_a_time(tmp_path: Path, started: list[Started]) -> None:
    started.append(Started(tmp_path, SLEEPS))
    started[0].until(Stage.RUNNING, line="update")
    with pytest.raises(DataError, match="Training is running"):
        started[0].process.start()
    started[0].process.cancel()
    assert started[0].end().stage is Stage.CANCELLED
    started[0].process.start()
    assert started[0].process.progress().stage is Stage.RUNNING


def test_cancelled_process_can_save(tmp_path: Path, started: list[Started]) -> None:
    saves = (
        "import signal, sys, time\n"
        "def stop(*_): open(sys.path[0] + '/saved', 'w'); print('saved'); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop); print('ready', flush=True); time.sleep(60)"
    )
    started.append(Started(tmp_path, saves))
    started[0].until(Stage.RUNNING, line="ready")
    started[0].process.cancel()
    ended = started[0].end()
    assert (ended.stage, ended.message) == (Stage.CANCELLED, "saved")
    assert (tmp_path / "saved").exists()
    assert "the previous voice stays in use" in views.training_status(ended)


def test_process_that_ignores_sigterm_is_killed_on_close(tmp_path: Path, started: list[Started]) -> None:
    started.append(Started(tmp_path, f"import os; print(os.getpid(), flush=True); {IGNORES_SIGTERM}"))
    process = int(started[0].until(Stage.RUNNING, line="update").lines[0])
    started[0].process.close(0.5)
    assert started[0].process.progress().stage is Stage.CANCELLED
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_password_is_not_passed_to_the_process(
    tmp_path: Path, started: list[Started], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITS_TRAINER_PASSWORD", "open sesame")
    started.append(Started(tmp_path, "import os; print(os.environ.get('VITS_TRAINER_PASSWORD'))"))
    assert started[0].end().message == "None"


def test_command_that_cannot_be_started_is_reported(tmp_path: Path) -> None:
    process = TrainingProcess([str(tmp_path / "absent")], tmp_path)
    with pytest.raises(DataError, match="could not be started"):
        process.start()
    assert process.progress().stage is Stage.IDLE


@pytest.mark.parametrize(
    ("content", "verdict"),
    [
        (json.dumps(VERDICT), ACCEPTED),
        ('{"accepted": false, "words": "a\\n b", "held_out": null}', Decision(False, "a b")),
        ("{", None),
        ("[]", None),
        ('{"accepted": true}', None),
        ('{"accepted": true, "words": "w", "corrections": {"before": "x", "after": 1}}', None),
        ('{"accepted": true, "words": "w", "version": []}', None),
        ("\x00\x01", None),
    ],
)
def test_invalid_verdict_files_are_ignored(tmp_path: Path, content: str, verdict: Decision | None) -> None:
    (tmp_path / "verdict.json").write_text(content)
    assert Decision.read(tmp_path / "verdict.json") == verdict


@pytest.mark.parametrize(
    ("exit_code", "verdict", "stopping", "stage"),
    [
        (0, ACCEPTED, False, Stage.ACCEPTED),
        (0, Decision(False, "no"), False, Stage.REFUSED),
        (1, ACCEPTED, False, Stage.FAILED),
        (143, None, True, Stage.CANCELLED),
        (-signal.SIGTERM, None, False, Stage.CANCELLED),
        (-signal.SIGKILL, None, True, Stage.CANCELLED),
        (-signal.SIGSEGV, None, False, Stage.FAILED),
        (2, None, False, Stage.MISTAKE),
    ],
)
def test_stage_for_each_exit_code(exit_code: int, verdict: Decision | None, stopping: bool, stage: Stage) -> None:
    assert outcome(exit_code, verdict, stopping) is stage
