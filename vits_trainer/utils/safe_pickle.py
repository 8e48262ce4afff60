"""Loading of pickled checkpoints without executing code in them.

A pickle can call any function. ``torch.load(weights_only=True)`` only allows tensors, numbers, text and containers;
:data:`_HARMLESS` adds the few other classes that VITS trainers store. Anything else raises an error that names it.
"""

import argparse
import pickle  # nosec B403
import re
import struct
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch

from vits_trainer.utils.errors import ModelError


def _plain_dictionary(factory: type | None = None) -> dict[Any, Any]:  # noqa: ARG001 - argument of defaultdict
    return {}


class _DType:
    """Replacement of ``np.dtype`` in pickles.

    ``np.dtype`` itself is unsafe: a pickle can set its flags, with which numpy reads arbitrary memory.
    """

    def __init__(self, name: str, *_: object) -> None:
        if name not in ("f2", "f4", "f8", "i4", "i8", "u1", "b1"):
            raise ValueError(f"unsupported dtype {name}")
        self.name = name

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", "|"):
            raise ValueError(f"unsupported byte order {state[1]}")


def _scalar(dtype: _DType, data: bytes) -> Any:
    return np.frombuffer(data, f"<{dtype.name}")[0]


_HARMLESS: list[Any] = [
    argparse.Namespace,
    (_plain_dictionary, "collections.defaultdict"),  # in optimizer states
    dict,
    (_DType, "numpy.dtype"),
    # Paths of the training machine, as pure paths: they access no file and work on any system.
    *(
        (PurePosixPath, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "Path")
    ),
    *((PureWindowsPath, f"{module}.WindowsPath") for module in ("pathlib", "pathlib._local")),
    # numpy scalars, such as the best loss. The module was renamed in numpy 2.
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
_DAMAGED = (
    OSError, EOFError, RuntimeError, SystemError, ValueError, ArithmeticError, LookupError, AttributeError, TypeError,
    AssertionError, struct.error,
)  # fmt: skip
"""Exceptions of torch for damaged files."""
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def load(path: Path) -> Any:
    """Loads a ``.pth`` or ``.ckpt`` file, with tensors on the CPU.

    Raises:
        ModelError: the file cannot be read, or refers to something that no checkpoint needs. The message names it.
    """
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        match = _GLOBAL.search(str(error))
        if match is None:
            raise ModelError(f"{path}: was not written by torch.save. Give a .pth or .ckpt checkpoint.") from error
        raise ModelError(
            f"{path}: refers to {match[1]}, which no checkpoint needs and which could execute code. It was not loaded. "
            "Ask the author for the weights alone, as torch.save(state_dict, ...) or safetensors."
        ) from error
    except _DAMAGED as error:
        raise ModelError(
            f"{path}: is not a checkpoint, or is damaged ({_reason(error)}). Download or copy it again."
        ) from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
