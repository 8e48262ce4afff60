"""Ranks in the log and in the W&B run: hosts, metrics per rank, and slow ranks."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.launch import ROOT, command_of, environment, flags_of, run
from tests.support.limits import HANG_S
from tests.support.voices import ended_wandb_run, metrics, prepared_folder, wandb_history
from vits_trainer.distributed.stragglers import LOGS_IN_A_ROW

pytestmark = pytest.mark.ranks

SLEEP_S = 0.5
"""Sleep of the last rank, per update."""
UPDATES = LOGS_IN_A_ROW + 3
ON_REQUEST = pytest.mark.skipif("STRAGGLERS" not in os.environ, reason="needs an idle machine: run with STRAGGLERS=1")


@pytest.fixture(scope="module")
def sixteen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of equal length, so that two ranks have the same work."""
    folder = tmp_path_factory.mktemp("sixteen")
    prepared_folder(folder, clips=16, longest_s=0.8)
    return folder / "training"


def flags(folder: Path, data: Path, **changes: object) -> list[str]:
    settings = {"batch_size": 4, "max_updates": UPDATES, "validation_fraction": 0, "save_every_updates": 0}
    return flags_of(folder, data, **{**settings, **changes})


def warnings(output: str) -> list[str]:
    return [line for line in output.splitlines() if " is slow at " in line]


def ranks_in(line: dict[str, float]) -> set[int]:
    return {int(name.split("/")[1]) for name in line if name.startswith("ranks/")}


def test_rank_slow_at_reading_is_reported_once_and_both_ranks_are_in_one_wandb_run(
    sixteen: Path, tmp_path: Path
) -> None:
    ended = run(2, "slow_rank", flags(tmp_path, sixteen), SLOW="reading", SLOW_S=str(SLEEP_S))
    assert ended.returncode == 0, ended.stderr
    host = socket.gethostname()
    assert f"2 processes on 1 host: {host} 0-1 (CPU), fp32" in ended.stderr
    # 16 clips, 8 per update, half of them on each rank.
    assert (
        "8 clips/update, 2 updates/epoch, 8 updates total; per process: 4 clips/update" in ended.stderr
    )
    assert "micro-batch, 8 clips/epoch" in ended.stderr
    (warning,) = warnings(ended.stderr)
    assert warning.startswith(f"update {LOGS_IN_A_ROW}  rank 1 on host {host} (local rank 1, CPU) is slow at reading: ")

    lines = metrics(tmp_path)
    assert [set(range(2)) for _ in lines] == [ranks_in(line) for line in lines]
    for line in lines:
        elapsed_s = 4 / line["ranks/1/utterances_per_s"]
        assert line["ranks/1/data_wait_fraction"] * elapsed_s >= SLEEP_S
        assert line["ranks/0/data_wait_fraction"] < line["ranks/1/data_wait_fraction"]
        assert line["time/data_wait_fraction_max"] == line["ranks/1/data_wait_fraction"]
        total, each = line["throughput/utterances_per_s"], line["throughput/utterances_per_s_per_rank"]
        assert each == pytest.approx(total / 2)
    assert lines[-1]["time/eta_h"] == 0

    (file,) = (tmp_path / "training/runs").glob("**/*.wandb")  # one run for both ranks
    history = [line for line in wandb_history(file) if "ranks/1/data_wait_fraction" in line]
    assert [line["ranks/1/data_wait_fraction"] for line in history] == [
        line["ranks/1/data_wait_fraction"] for line in lines
    ]
    alerts = [
        (record.alert.title, record.alert.text)
        for record in ended_wandb_run(tmp_path / "training/runs/run")
        if record.WhichOneof("record_type") == "alert"
    ]
    assert [title for title, _ in alerts] == ["A rank is slow"]
    assert warning.endswith(alerts[0][1])


def test_no_rank_is_reported_if_none_is_slow(sixteen: Path, tmp_path: Path) -> None:
    # Several updates per log: on a shared machine a rank may be late in one of them.
    ended = run(2, None, flags(tmp_path, sixteen, max_updates=4 * UPDATES, log_every_updates=4))
    assert ended.returncode == 0, ended.stderr
    assert len(metrics(tmp_path)) > LOGS_IN_A_ROW
    assert warnings(ended.stderr) == []


@ON_REQUEST
def test_rank_slow_at_computing_is_reported(sixteen: Path, tmp_path: Path) -> None:
    ended = run(2, "slow_rank", flags(tmp_path, sixteen), SLOW="computing", SLOW_S=str(SLEEP_S))
    assert ended.returncode == 0, ended.stderr
    (warning,) = warnings(ended.stderr)
    assert "rank 1 on host" in warning
    assert "slow at computing" in warning
    for line in metrics(tmp_path)[1:]:  # in the first update, the forward pass has a collective
        late_s = line["ranks/1/compute_s_per_update"] - line["ranks/0/compute_s_per_update"]
        assert late_s == pytest.approx(SLEEP_S, abs=0.25)


@ON_REQUEST
def test_rank_that_is_suspended_half_of_the_time_is_reported_until_it_recovers(
    sixteen: Path, tmp_path: Path
) -> None:
    """Like a rank that shares its CPU with another job."""
    command = command_of("cpu_2proc", "-m", "vits_trainer", "train_vits", program=sys.executable)
    arguments = flags(tmp_path, sixteen, max_updates=400, log_every_updates=5)
    variables = environment(PYTHON_EXEC=sys.executable)
    output = tmp_path / "output.txt"
    with output.open("w") as file:
        launcher = subprocess.Popen([*command, *arguments], stderr=file, stdout=file, cwd=ROOT, env=variables)
        try:
            start_time_s = time.monotonic()
            while launcher.poll() is None and "no longer slow" not in output.read_text():
                assert time.monotonic() - start_time_s < HANG_S
                if "update 5/" not in output.read_text() or warnings(output.read_text()):
                    time.sleep(0.1)
                    continue
                process = rank_1(launcher.pid)
                process.suspend()
                time.sleep(0.05)
                process.resume()
                time.sleep(0.05)
        finally:
            launcher.terminate()
            launcher.wait(30)
    (warning,) = warnings(output.read_text())
    assert "rank 1 on host" in warning
    assert "slow at computing" in warning
    assert "no longer slow at computing" in output.read_text()


def rank_1(launcher: int) -> psutil.Process:
    (process,) = (
        child for child in psutil.Process(launcher).children(recursive=True) if child.environ().get("RANK") == "1"
    )
    return process
