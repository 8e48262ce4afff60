"""The Slurm script against stand-ins for srun and scontrol, as there is no cluster here."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.limits import HANG_S

SCRIPT = Path(__file__).parents[1] / "accelerate_configs/slurm.sh"
SRUN = """#!/usr/bin/env bash
echo "$*" >> "$LOG"
until [ -e "$DATA_DIR/runs/$RUN_NAME/STOP" ] || [ -n "${DONE:-}" ]; do sleep 0.05; done
sleep 0.3  # it saves
echo "{\\"outcome\\": \\"${DONE:-stopped}\\"}" > "$DATA_DIR/runs/$RUN_NAME/outcome.json"
"""
SCONTROL = """#!/usr/bin/env bash
[ "$1" = show ] && echo node-a || echo "scontrol $*" >> "$LOG"
"""


def job(folder: Path, **more: str) -> subprocess.Popen[bytes]:
    for name, content in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(content)
        (folder / name).chmod(0o755)
    settings = {"LOG": folder / "log", "DATA_DIR": folder / "data", "RUN_NAME": "r", "SLURM_JOB_ID": "7"}
    settings |= {"SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node-[a-b]", "PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.Popen(["bash", str(SCRIPT), "--epochs", "3"], env={**map_str(settings), **more})


def map_str(settings: dict[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in settings.items()}


@pytest.mark.parametrize("done", [False, True])
def test_job_is_queued_again_unless_it_is_done(done: bool, tmp_path: Path) -> None:
    process = job(tmp_path, **({"DONE": "done"} if done else {}))
    if not done:
        while not (tmp_path / "log").exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=HANG_S) == 0
    said = (tmp_path / "log").read_text()
    assert "--num_machines 2 --num_processes 16" in said
    assert "--resume_from_checkpoint auto --epochs 3" in said
    assert ("scontrol requeue 7" in said) is not done
