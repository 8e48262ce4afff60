"""The folder of a run, ``runs/<run_name>``: naming, ownership check and exclusive lock."""

import itertools
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vits_trainer.utils.errors import ConfigError
from vits_trainer.utils.files import Kind, claim, discard, is_ours, mark

RUN = Kind(
    "run",
    re.compile(
        r"(config|facts|outcome|wandb|worst_clips)\.(json|yaml)|(train\.log|vocabulary\.csv|speakers\.csv)"
        r"|(metrics|rejected)\.jsonl|samples|nonfinite"
    ),
    lambda folder: all((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl")),
)
_LOCK_TIMEOUT_S = 5.0
"""Long enough for the data workers of a killed run to exit."""


@contextmanager
def exclusive_run(run_dir: Path) -> Iterator[None]:
    """Creates a run's folder if missing, and locks it against other runs.

    A restarted run waits at its checkpoint folder until its predecessor has exited. If the run folder is still locked
    after that, two runs have the same name: an error is raised within seconds.

    Raises:
        ConfigError: another run has locked the folder, it contains other files, or it cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        names = [path.name for path in sorted(run_dir.iterdir()) if RUN.files.fullmatch(path.name)]
        if names and not is_ours(run_dir, RUN):
            raise ConfigError(
                f"{run_dir} contains {', '.join(names[:3])}, but is not a run folder. Choose another --runs_dir or "
                "--run_name."
            )
        held = claim(run_dir / ".lock", _LOCK_TIMEOUT_S, run_dir)
    except OSError as error:
        raise _unwritable(run_dir, error) from error
    if held is None:
        raise ConfigError(
            f"--run_name {run_dir.name}: a run of this name is active in {run_dir}. Choose another --run_name, or wait "
            "for it to end."
        )
    with held:
        mark(run_dir, RUN)
        try:
            yield
        finally:
            discard(run_dir / ".lock")


def new_name(runs_dir: Path) -> str:
    """Returns a unique run name from the current time, and creates its folder.

    Raises:
        ConfigError: the folder cannot be created.
    """
    stem = time.strftime("train_vits-%Y%m%d-%H%M%S")
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(name for name in names if _try_create(runs_dir / name))


def _try_create(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    except OSError as error:
        raise _unwritable(folder, error) from error
    return True


def _unwritable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{folder} cannot be written ({error.strerror or error}). Choose another --runs_dir or --run_name."
    )
