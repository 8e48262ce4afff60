"""Times an update on an idle CPU, with other programs running, and under a quota of one CPU.

    python -m experiments.cpu_load [--updates 5] [--rows 0 2]

Each row runs ``vits-trainer benchmark`` (size tiny, 8 clips of 2.1 s, fp32) in a separate process. The quota requires
root and control groups of version 1 or 2; without them it is skipped with a message.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


@contextmanager
def busy(programs: int) -> Iterator[None]:
    """Runs ``programs`` busy processes inside the context."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(programs)]
    try:
        yield
    finally:
        for program in running:
            program.kill()
            program.wait()


@contextmanager
def quota_of_one() -> Iterator[Path]:
    """Yields the cgroup.procs file of a control group with one CPU; processes join by writing their PID to it."""
    is_v1 = (_GROUPS / "cpu").is_dir()
    group = (_GROUPS / "cpu" if is_v1 else _GROUPS) / f"vits_trainer_load_{os.getpid()}"
    group.mkdir()
    try:
        if is_v1:
            (group / "cpu.cfs_quota_us").write_text("100000", encoding="utf-8")
        else:
            (group / "cpu.max").write_text("100000 100000", encoding="utf-8")
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


def update_s(updates: int, variables: dict[str, str], tasks: Path | None = None) -> float:
    """Returns the median seconds per update in a process with these environment variables and this control group."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        flags = ["--size", "tiny", "--batch_size", "8", "--clip_s", "2.1", "--tokens", "60", "--precision", "fp32"]
        command = [sys.executable, "-m", "vits_trainer", "benchmark", *flags, "--updates", str(updates)]
        subprocess.run(
            [*command, "--json", file.name],
            env={**os.environ, **variables},
            check=True,
            stdout=subprocess.DEVNULL,
            preexec_fn=None if tasks is None else lambda: tasks.write_text(str(os.getpid()), encoding="utf-8") and None,
        )
        figures: dict[str, float] = json.loads(Path(file.name).read_text(encoding="utf-8"))
    return figures["ms_update"] / 1000


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--rows", nargs="*", type=int, default=[0, 1, 2, 3], help="rows of the table, from 0")
    arguments = parser.parse_args()
    settings = {
        "all threads, spinning (libgomp's default)": {"GOMP_SPINCOUNT": "300000"},
        "all threads, spinning 10,000 times": {"GOMP_SPINCOUNT": "10000"},
        "all threads, as here": {},
        "one thread": {"OMP_NUM_THREADS": "1"},
    }
    for name, variables in [list(settings.items())[row] for row in arguments.rows]:
        row = []
        for programs in (0, 1, 2):
            with busy(programs):
                row.append(update_s(arguments.updates, variables))
        with ExitStack() as stack:
            try:
                row.append(update_s(arguments.updates, variables, stack.enter_context(quota_of_one())))
            except OSError as error:
                print(f"No quota: {error}")
        print(f"{name:45}", "  ".join(f"{seconds:6.2f} s ({seconds / row[0]:4.1f})" for seconds in row), flush=True)


if __name__ == "__main__":
    _main()
