"""Checkpoints that are pickles, read without running what is in them.

A pickle is a program: it may name any function and call it. ``torch.load(weights_only=True)`` follows tensors, numbers,
text and containers alone; :data:`_HARMLESS` adds the few classes that VITS trainers put beside them. Everything else is
named and refused.
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


def _plain_dictionary(factory: type | None = None) -> dict[Any, Any]:  # noqa: ARG001 - what a defaultdict is made with
    return {}


class _Kind:
    """A type of numbers, as numpy's pickles name it.

    Not ``np.dtype`` itself: what follows its name in a pickle sets its flags, and those let numpy read any memory.
    """

    def __init__(self, name: str, *_: object) -> None:
        if name not in ("f2", "f4", "f8", "i4", "i8", "u1", "b1"):
            raise ValueError(f"numbers of type {name}")
        self.name = name

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", "|"):
            raise ValueError(f"numbers in byte order {state[1]}")


def _number(kind: _Kind, data: bytes) -> Any:
    return np.frombuffer(data, f"<{kind.name}")[0]


_HARMLESS: list[Any] = [
    argparse.Namespace,
    (_plain_dictionary, "collections.defaultdict"),  # in an optimiser's state
    dict,
    (_Kind, "numpy.dtype"),
    # Paths of the machine that trained: names only, which touch no file and which any system can make.
    *(
        (PurePosixPath, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "Path")
    ),
    *((PureWindowsPath, f"{module}.WindowsPath") for module in ("pathlib", "pathlib._local")),
    # A number as numpy keeps it, such as the best loss; the module was renamed in numpy 2.
    *((_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
_DAMAGED = (
    OSError, EOFError, RuntimeError, SystemError, ValueError, ArithmeticError, LookupError, AttributeError, TypeError,
    AssertionError, struct.error,
)  # fmt: skip
"""What torch raises where bytes of a file are others than were written."""
_NAMED = re.compile(r"GLOBAL ([\w.]+)")


def load(path: Path) -> Any:
    """What a ``.pth`` or ``.ckpt`` file holds, its tensors on the CPU.

    Raises:
        ModelError: it cannot be read, or asks for something that is none of a checkpoint's business, which is named.
    """
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = _NAMED.search(str(error))
        if named is None:
            raise ModelError(f"{path} is no file that torch.save wrote. Give a .pth or .ckpt checkpoint.") from error
        raise ModelError(
            f"{path} asks for {named[1]}, which a checkpoint needs for nothing and which may run any program: it was "
            "not loaded. Ask its author for the weights alone, as torch.save(state_dict, ...) or safetensors."
        ) from error
    except _DAMAGED as error:
        raise ModelError(f"{path}: no checkpoint ({_reason(error)}). Download or copy it again.") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
