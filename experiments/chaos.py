"""Kills a training run at random times, resumes it each time, and compares it with an uninterrupted run.

    python -m experiments.chaos --kills 25 --ranks 1

One run is repeatedly killed with SIGKILL (all processes, including the launcher) at random times: some during startup,
some while a checkpoint is written. After each kill, every checkpoint is compared with the uninterrupted run's of the
same update, and so are all clips and lines of metrics up to the newest checkpoint. At the end the finished runs are
compared.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.support.voices import prepared_folder, train_flags

ROOT = Path(__file__).parents[1]
ASIDE = ("time/", "throughput/", "memory/", "ranks/")
"""Prefixes of metrics that depend on the machine, not on the training."""
SETTINGS = {
    "batch_size": 2,
    "gradient_accumulation_steps": 2,
    "data_workers": 2,
    "log_every_updates": 3,
    "validate_every_updates": 5,
    "save_every_updates": 2,
    "keep_checkpoints": 0,
    "validation_samples": 0,
    "resume_from_checkpoint": "auto",
}


@dataclass(frozen=True)
class Run:
    """A training run in a separate folder, over all its attempts."""

    folder: Path
    data: Path
    updates: int
    ranks: int
    program: str = sys.executable
    """Python interpreter."""

    @property
    def record(self) -> Path:
        return self.folder / "runs/run"

    def start(self) -> subprocess.Popen[bytes]:
        """Starts one attempt in a new session."""
        settings = SETTINGS | {"max_updates": self.updates, "data_dir": self.data, "runs_dir": self.folder / "runs"}
        if self.ranks == 2:
            settings |= {"batch_size": 1}
        self.folder.mkdir(parents=True, exist_ok=True)
        program = str(ROOT / "tests/ranks/programs/record_clips.py")
        script = [program, "train_vits", *train_flags(self.folder, **settings)]
        topology = ROOT / "accelerate_configs/cpu_2proc.yaml"
        launcher = ["-m", "accelerate.commands.launch", "--config_file", str(topology)]
        with (self.folder / "said.txt").open("ab") as said:
            return subprocess.Popen(
                [self.program, *(launcher if self.ranks == 2 else []), *script],
                stdout=said,
                stderr=said,
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
                start_new_session=True,
            )

    def finish(self) -> tuple[float, float]:
        """Runs to the end; returns the seconds to the first update, and in total."""
        began, first_s = time.monotonic(), 0.0
        attempt = self.start()
        while attempt.poll() is None:
            if not first_s and (self.record / "clips-0.jsonl").is_file():
                first_s = time.monotonic() - began
            time.sleep(0.05)
        if attempt.returncode:
            raise SystemExit(f"it ended with {attempt.returncode}:\n{(self.folder / 'said.txt').read_text()[-3000:]}")
        return first_s, time.monotonic() - began

    def checkpoints(self) -> dict[int, Path]:
        found = (self.folder / "checkpoints").glob("checkpoint-*")
        return dict(sorted((int(path.name.partition("-")[2]), path) for path in found))

    def begun_saves(self) -> set[int]:
        """Inodes of temporary checkpoint directories: of a save in progress, or of one that was killed."""
        found = set()
        for path in (self.folder / "checkpoints").glob(".tmp-checkpoint-*"):
            with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                found.add(path.stat().st_ino)
        return found

    def weights(self, update: int) -> str:
        """Returns a hash of both networks and both optimizers."""
        digest = hashlib.sha256()
        for path in sorted(self.checkpoints()[update].glob("*.safetensors")):
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()

    def clips(self, until: int) -> dict[tuple[int, int], Any]:
        """Returns the clips by (update, rank). A repeated update must have had the same clips both times."""
        found: dict[tuple[int, int], Any] = {}
        for rank in range(self.ranks):
            for line in _whole_lines(self.record / f"clips-{rank}.jsonl"):
                if line["update"] <= until:
                    key = (line["update"], rank)
                    if found.setdefault(key, line["clips"]) != line["clips"]:
                        raise SystemExit(f"update {key}: different clips when repeated")
        return found

    def metrics(self, until: int) -> list[dict[str, Any]]:
        lines = [line for line in _whole_lines(self.record / "metrics.jsonl") if line["update"] <= until]
        return [{key: value for key, value in line.items() if not key.startswith(ASIDE)} for line in lines]


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    content = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in content.splitlines(keepends=True) if line.endswith("\n")]


def differences(run: Run, calm: Run, until: int) -> list[str]:
    """Lists what differs between ``run`` and ``calm`` up to update ``until``."""
    updates = [update for update in run.checkpoints() if update <= until]
    found = [f"weights at {update}" for update in updates if run.weights(update) != calm.weights(update)]
    found += ["clips"] if run.clips(until) != calm.clips(until) else []
    return found + (["metrics"] if run.metrics(until) != calm.metrics(until) else [])


@dataclass(frozen=True)
class Moment:
    """When to kill an attempt: ``wait_s`` after it has trained ``updates``, and optionally while it saves."""

    updates: int
    wait_s: float
    while_saving: bool

    @classmethod
    def draw(cls, dice: random.Random, number: int, first_s: float, updates_per_kill: float) -> "Moment":
        """Draws every fourth during startup, every third during a save, the others at any time."""
        if number % 4 == 0:
            return cls(0, dice.uniform(0, first_s), while_saving=False)
        return cls(1 + dice.randrange(1 + int(updates_per_kill)), dice.uniform(0, 0.3), number % 3 == 0)


def kill(run: Run, moment: Moment) -> tuple[str, int]:
    """Starts an attempt and kills it; returns a description of the time, and the newest complete checkpoint."""
    clips = run.record / "clips-0.jsonl"
    earlier, lines, began = run.begun_saves(), _count(clips), time.monotonic()
    attempt, reached_s = run.start(), 0.0
    while attempt.poll() is None:
        if _count(clips) - lines < moment.updates:
            time.sleep(0.005)
            continue
        reached_s = reached_s or time.monotonic()
        waited = time.monotonic() - reached_s >= moment.wait_s
        if waited and (not moment.while_saving or run.begun_saves() - earlier):
            break
        time.sleep(0.0005)
    saving, ended = bool(run.begun_saves() - earlier), attempt.poll() is not None
    lived_s = time.monotonic() - began
    if not ended:
        # The launcher starts each rank in a new session: they would outlive it.
        processes = [psutil.Process(attempt.pid), *psutil.Process(attempt.pid).children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        attempt.wait()
        psutil.wait_procs(processes, timeout=20)
    trained = _count(clips) - lines
    words = "had ended" if ended else f"{lived_s:5.1f} s, {trained} updates{', saving' if saving else ''}"
    return words, max(run.checkpoints(), default=0)


def _count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def chaos(folder: Path, kills: int, ranks: int, updates: int, seed: int, program: str = sys.executable) -> bool:
    """Prints one row per kill of ``program``; returns whether the run stayed equal to the uninterrupted one."""
    prepared_folder(folder, clips=30)
    data = folder / "training"
    calm, wild = (Run(folder / name, data, updates, ranks, program) for name in ("calm", "wild"))
    first_s, took_s = calm.finish()
    print(f"{ranks} rank(s), {updates} updates, uninterrupted {took_s:.1f} s, first update after {first_s:.1f} s")
    print("kill  time                           newest checkpoint  weights, clips and metrics so far", flush=True)
    dice, good = random.Random(seed), 0
    for number in range(1, kills + 1):
        moment, newest = kill(wild, Moment.draw(dice, number, first_s, updates / kills))
        found = differences(wild, calm, newest) + (["it had ended"] if moment == "had ended" else [])
        good += not found
        print(f"{number:4}  {moment:<29}  {newest:>17}  {', '.join(found) or 'equal'}", flush=True)
    wild.finish()
    found = differences(wild, calm, updates)
    lines = len(wild.metrics(updates))
    print(f"{good} of {kills} equal; the finished run: {', '.join(found) or 'equal'}, {lines} lines of metrics")
    return good == kills and not found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--ranks", type=int, choices=(1, 2), default=1)
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        return 0 if chaos(Path(folder), asked.kills, asked.ranks, asked.updates, asked.seed) else 1


if __name__ == "__main__":
    sys.exit(main())
