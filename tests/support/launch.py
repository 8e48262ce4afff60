"""Runs under ``accelerate launch``."""

import json
import os
import socket
import subprocess
from collections import Counter
from pathlib import Path

from tests.support.fork_server import python
from tests.support.limits import HANG_S
from tests.support.voices import train_flags

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "accelerate_configs"


def command_of(config: str, *target: str, program: str | None = None) -> list[str]:
    """Returns the command of ``accelerate launch``, by default in a fork of a process that has imported libraries."""
    launcher = [program or python(), "-m", "accelerate.commands.launch"]
    return [*launcher, "--config_file", str(CONFIGS / f"{config}.yaml"), *target]


def environment(**variables: object) -> dict[str, str]:
    """Returns this environment with ``variables``; a launcher starts its ranks as forks, too."""
    forked = {"PYTHON_EXEC": python()}  # of torch.distributed.run
    common = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **common, **forked, **{name: str(value) for name, value in variables.items()}}


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


RECORDED = str(ROOT / "tests/ranks/programs/record_clips.py")


def start(
    folder: Path,
    data: Path,
    *launcher: str,
    script: str = RECORDED,
    ranks_program: str | None = None,
    **changes: object,
) -> subprocess.Popen[str]:
    flags = train_flags(folder, data_dir=data, runs_dir=folder / "training/runs", **changes)
    flags += ["--resume_from_checkpoint", "auto"] if script == RECORDED else []
    config, *options = launcher
    return subprocess.Popen(
        [*command_of(config, *options), script, "train_vits", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment(PYTHON_EXEC=ranks_program or python()),
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=HANG_S)
    return process.returncode, output


def recorded(folder: Path, rank: int) -> list[dict]:
    path = folder / f"training/runs/run/clips-{rank}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def clips_by_update(folder: Path, ranks: int) -> dict[int, Counter[str]]:
    clips_of: dict[int, Counter[str]] = {}
    for rank in range(ranks):
        for line in recorded(folder, rank):
            for clips in line["clips"]:
                clips_of.setdefault(line["update"], Counter()).update(clips)
    return clips_of


def run(ranks: int, script: str | None, flags: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs train_vits, several ranks by accelerate launch; raises TimeoutExpired if it hangs."""
    target = ["-m", "vits_trainer"] if script is None else [str(ROOT / f"tests/ranks/programs/{script}.py")]
    command = command_of("cpu_2proc", *target) if ranks == 2 else [python(), *target]
    return subprocess.run(
        [*command, "train_vits", *flags],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        cwd=ROOT,
        env=environment(TORCH_ELASTIC_SHUTDOWN_TIMEOUT=5, **variables),
    )


def flags_of(folder: Path, data: Path, **changes: object) -> list[str]:
    settings: dict[str, object] = {"data_dir": data, "runs_dir": folder / "training/runs"}
    return train_flags(folder, **{**settings, "max_updates": 0, "epochs": 1, **changes})
