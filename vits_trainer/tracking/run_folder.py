"""The folder of one run's record, ``runs/<run_name>``: which folder it may be, and who may write there."""

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
_PATIENCE_S = 5.0
"""Enough for the data workers of a run that was killed."""


@contextmanager
def exclusive_run(run_dir: Path) -> Iterator[None]:
    """Inside, no other run writes to a run's folder, which is made if need be.

    A run that is started again waits at its folder of checkpoints until the one before has left. Whoever still meets
    another here has given two runs one name, and is told so within seconds.

    Raises:
        ConfigError: another run has it, it holds something else, or it cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        names = [path.name for path in sorted(run_dir.iterdir()) if RUN.files.fullmatch(path.name)]
        if names and not is_ours(run_dir, RUN):
            raise ConfigError(
                f"{run_dir} holds {', '.join(names[:3])}, and is no run's folder. Give another --runs_dir or "
                "--run_name."
            )
        held = claim(run_dir / ".lock", _PATIENCE_S, run_dir)
    except OSError as error:
        raise _unwritable(run_dir, error) from error
    if held is None:
        raise ConfigError(
            f"--run_name {run_dir.name}: a run of this name is at work in {run_dir}. Give another --run_name, or wait "
            "for it to end."
        )
    with held:
        mark(run_dir, RUN)
        try:
            yield
        finally:
            discard(run_dir / ".lock")


def new_name(runs_dir: Path) -> str:
    """Names a run by the time, as no other run is named, and makes its folder.

    Raises:
        ConfigError: the folder cannot be made.
    """
    stem = time.strftime("train_vits-%Y%m%d-%H%M%S")
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(name for name in names if _is_made(runs_dir / name))


def _is_made(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    except OSError as error:
        raise _unwritable(folder, error) from error
    return True


def _unwritable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{folder} cannot be written ({error.strerror or error}). Give another --runs_dir or --run_name."
    )
