"""Several launches of one run: other numbers of processes, signals to launcher and ranks, a launcher's restart."""

import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.support.launch import ROOT, clips_by_update, finish, recorded, start
from tests.support.limits import HANG_S
from tests.support.voices import metrics, prepared_folder

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elastic")
    return prepared_folder(folder, clips=22)


def test_two_then_one_then_four_ranks_train_on_the_clips_of_an_uninterrupted_run(data: Path, tmp_path: Path) -> None:
    uninterrupted, changing = tmp_path / "uninterrupted", tmp_path / "changing"
    launches = [
        (uninterrupted, "cpu", 1, {"batch_size": 4, "max_updates": 14}),
        (changing, "cpu_2proc", 2, {"batch_size": 2, "max_updates": 5}),
        (changing, "cpu", 1, {"batch_size": 2, "gradient_accumulation_steps": 2, "max_updates": 9}),
        (changing, "cpu_2proc", 4, {"batch_size": 1, "max_updates": 14}),
    ]
    for folder, config, ranks, settings in launches:
        folder.mkdir(exist_ok=True)
        code, output = finish(start(folder, data, config, "--num_processes", str(ranks), **settings))
        assert code == 0, output
    assert "processes 2 -> 1" in (changing / "training/runs/run/train.log").read_text()
    clips = clips_by_update(changing, ranks=4)
    assert clips == clips_by_update(uninterrupted, ranks=1)
    # 21 training clips in updates of at most 4: six per epoch, three of 3 clips, of which a fourth rank has none.
    sizes = [sum(clips[update].values()) for update in range(1, 15)]
    assert [sorted(sizes[:6]), sorted(sizes[6:12])] == [[3, 3, 3, 4, 4, 4]] * 2
    assert sum((clips[update] for update in range(1, 7)), Counter()) == sum(
        (clips[update] for update in range(7, 13)), Counter()
    )
    assert [line["data/trained"] for line in metrics(changing)][-1] == sum(sizes)


def wait_for_update(folder: Path, process: subprocess.Popen[str], update: int) -> None:
    start_time_s = time.monotonic()
    while not any(line["update"] >= update for line in recorded(folder, 0)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() - start_time_s < HANG_S
        time.sleep(0.01)


def test_signals_and_stop_file_stop_both_ranks_at_the_same_update(data: Path, tmp_path: Path) -> None:
    def rank_1() -> int:
        # None for processes that have ended meanwhile.
        running = (p.info for p in psutil.process_iter(["pid", "cmdline", "environ"]) if p.info["environ"])
        ours = (info for info in running if str(tmp_path / "checkpoints") in (info["cmdline"] or ()))
        return next(info["pid"] for info in ours if info["environ"].get("RANK") == "1")

    stops = [
        # The launcher forwards SIGTERM, and exits with 1 although its ranks exit with 0.
        ("SIGTERM on rank 0, SIGTERM on rank 1", 1, lambda launcher: os.kill(launcher, signal.SIGTERM)),
        ("SIGUSR1 on rank 1", 0, lambda _: os.kill(rank_1(), signal.SIGUSR1)),
        ("STOP on rank", 0, lambda _: (tmp_path / "training/runs/run/STOP").touch()),
    ]
    reached = 0
    for reason, code, stop in stops:
        process = start(tmp_path, data, "cpu_2proc", batch_size=2, max_updates=100_000)
        wait_for_update(tmp_path, process, reached + 2)
        stop(process.pid)
        exit_code, output = finish(process)
        assert exit_code == code, output
        outcome = json.loads((tmp_path / "training/runs/run/outcome.json").read_text())
        assert reason in outcome["outcome"]
        assert outcome["update"] > reached
        reached = outcome["update"]
        # No rank has started the next update, and the checkpoint of this one is complete.
        assert [recorded(tmp_path, rank)[-1]["update"] for rank in (0, 1)] == [reached, reached]
        assert (tmp_path / f"checkpoints/checkpoint-{reached}/manifest.json").is_file()
    updates = [line["update"] for line in recorded(tmp_path, 1)]
    assert updates == list(range(1, reached + 1))  # each launch continued where the previous one stopped
    code, output = finish(start(tmp_path, data, "cpu_2proc", batch_size=2, max_updates=reached + 1))
    assert code == 0, output
    assert "weights of all 2 ranks" in output


def test_restart_by_the_launcher_resumes_automatically(data: Path, tmp_path: Path) -> None:
    script = str(ROOT / "tests/ranks/programs/crash_in_step.py")
    options = {"batch_size": 2, "max_updates": 6, "save_every_updates": 2}
    code, output = finish(start(tmp_path, data, "cpu_2proc", "--max_restarts", "1", script=script, **options))
    assert code == 0, output
    assert re.search(r"Resumed from \S+checkpoint-2 at update 2", output)
    assert [line["update"] for line in metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert json.loads((tmp_path / "training/runs/run/wandb.json").read_text())["attempts"] == 2
