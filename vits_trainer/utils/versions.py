"""Versions of the packages that decide what a run computes."""

import hashlib
from importlib.metadata import version
from pathlib import Path


def versions() -> dict[str, str]:
    """Of the packages that decide what a run computes."""
    names = ("vits-trainer", "torch", "torchaudio", "accelerate", "transformers", "datasets", "wandb")
    return {name: version(name) for name in names} | {"code": _code()}


def _code() -> str:
    """Changes when a line of this package does."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
