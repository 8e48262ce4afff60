"""Versions of the packages that affect the results of a run."""

import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path


@cache
def versions() -> dict[str, str]:
    """Returns the versions of the relevant packages, and a hash of this package's code; those of the first call."""
    names = ("vits-trainer", "torch", "torchaudio", "accelerate", "transformers", "datasets", "wandb")
    return {name: version(name) for name in names} | {"code": _code()}


def _code() -> str:
    """Returns a hash of all source files of this package."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
