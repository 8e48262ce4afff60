"""Loading of pickled checkpoints without executing code in them.

A pickle can call any function. ``torch.load(weights_only=True)`` only allows tensors, numbers, text and containers;
:data:`_HARMLESS` adds the few other classes that VITS trainers store. Anything else raises an error that names it.
"""

import argparse
import pickle  # nosec B403
import re
import struct
import zipfile
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
    AssertionError, RecursionError, MemoryError, struct.error, zipfile.BadZipFile, NotImplementedError,
)  # fmt: skip
"""Exceptions of torch for damaged files."""
_REMEDY = "Ask the author for the weights alone, as torch.save(state_dict, ...) or safetensors."
_MAX_PICKLE_BYTES = 64 * 2**20
_SHARED_BYTES = 16 * 2**20
"""Allowance for weights that a checkpoint refers to several times."""
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def load(path: Path) -> Any:
    """Loads a ``.pth`` or ``.ckpt`` file, with tensors on the CPU.

    Raises:
        ModelError: the file cannot be read, would expand to more than its size, or refers to something that no
            checkpoint needs. The message names it.
    """
    try:
        _require_stored(path)
        with torch.serialization.safe_globals(_HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        match = _GLOBAL.search(str(error))
        if match is None:
            raise ModelError(f"{path}: was not written by torch.save. Give a .pth or .ckpt checkpoint.") from error
        raise ModelError(
            f"{path}: refers to {match[1]}, which no checkpoint needs and which could execute code. It was not loaded. "
            f"{_REMEDY}"
        ) from error
    except _DAMAGED as error:
        raise ModelError(
            f"{path}: is not a checkpoint, or is damaged ({_reason(error)}). Download or copy it again."
        ) from error
    _require_no_expansion(content, path)
    return content


def _require_stored(path: Path) -> None:
    """Raises for a zip archive whose members are compressed or overlap: a few bytes could expand to gigabytes.

    ``torch.save`` compresses nothing.

    Raises:
        ModelError: the archive would expand, or its pickle is implausibly large.
    """
    size_bytes = path.stat().st_size
    if not zipfile.is_zipfile(path):
        if size_bytes and _names_bytearray(path, _MAX_PICKLE_BYTES):
            raise _expands(path)
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        sizes = [max(member.file_size, member.compress_size) for member in members]
        compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if compressed or sum(sizes) > size_bytes:
            raise _expands(path)
        for member in members:
            if member.filename.endswith("data.pkl"):
                if member.file_size > _MAX_PICKLE_BYTES:
                    raise ModelError(
                        f"{path}: its pickle has {member.file_size:,} bytes other than the weights. {_REMEDY}"
                    )
                if b"bytearray" in archive.read(member):
                    raise _expands(path)


def _names_bytearray(path: Path, max_bytes: int) -> bool:
    """Returns whether a pickle could create a ``bytearray``, whose size is a mere number in it."""
    with path.open("rb") as file:
        return b"bytearray" in file.read(max_bytes)


def _require_no_expansion(content: Any, path: Path) -> None:
    """Raises for tensors that show the same numbers many times (stride 0): their first copy would fill the memory."""
    tensors, seen, level = [], set[int](), [content]
    while level:
        below: list[Any] = []
        for item in level:
            if id(item) in seen:
                continue
            seen.add(id(item))
            if isinstance(item, torch.Tensor):
                tensors.append(item)
            elif isinstance(item, dict):
                below += [*item.keys(), *item.values()]
            elif isinstance(item, (list, tuple, set)):
                below += item
            elif isinstance(item, argparse.Namespace):
                below += vars(item).values()
        level = below
    dense = [tensor for tensor in tensors if tensor.layout == torch.strided and not tensor.is_meta]
    shown_bytes = sum(tensor.numel() * tensor.element_size() for tensor in dense)
    if shown_bytes > 2 * path.stat().st_size + _SHARED_BYTES:
        raise _expands(path)


def _expands(path: Path) -> ModelError:
    return ModelError(f"{path}: would expand to more memory than its size. It was not loaded. {_REMEDY}")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
