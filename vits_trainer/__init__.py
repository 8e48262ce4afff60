"""Trains and fine-tunes VITS and MMS-TTS voices with Hugging Face Accelerate.

The names below are the public Python interface (docs/python.md). They are loaded when they are used: importing the
package, and ``--help``, load no torch.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vits_trainer.utils.cpu_threads import configure_openmp

if TYPE_CHECKING:
    from vits_trainer.config.prepare import PrepareConfig
    from vits_trainer.config.train import TrainConfig
    from vits_trainer.config.voices import EvaluateConfig
    from vits_trainer.data.preparation.pipeline import prepare
    from vits_trainer.evaluation.evaluate import evaluate
    from vits_trainer.evaluation.synthesis import Voice
    from vits_trainer.training.run import train
    from vits_trainer.utils.errors import VitsTrainerError

__version__ = "0.1.0"
__all__ = [
    "EvaluateConfig",
    "PrepareConfig",
    "TrainConfig",
    "VitsTrainerError",
    "Voice",
    "evaluate",
    "prepare",
    "train",
]

_MODULES = {
    "EvaluateConfig": "config.voices",
    "PrepareConfig": "config.prepare",
    "TrainConfig": "config.train",
    "VitsTrainerError": "utils.errors",
    "Voice": "evaluation.synthesis",
    "evaluate": "evaluation.evaluate",
    "prepare": "data.preparation.pipeline",
    "train": "training.run",
}

# Before torch is imported, which loads OpenMP; data workers and other child processes inherit it.
configure_openmp(os.environ)


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
