"""Optional packages for ONNX, and onnxruntime sessions."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from vits_trainer.utils.errors import InstallationError, ModelError
from vits_trainer.utils.installation import install_command

EXPORT_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def require_packages(*names: str) -> None:
    """Raises :class:`InstallationError` if a package is not installed; without names, if any of those of an export."""
    missing = [name for name in names or EXPORT_PACKAGES if find_spec(name) is None]
    if missing:
        raise InstallationError(f"ONNX needs {', '.join(missing)}: {install_command('onnx')}.")


def open_session(path: Path) -> Any:
    """Opens a file on the CPU, with as many threads as PyTorch uses.

    Returns:
        An ``onnxruntime.InferenceSession``.

    Raises:
        InstallationError: onnxruntime is missing.
        ModelError: the file cannot be loaded.
    """
    require_packages("onnxruntime")
    import onnxruntime  # noqa: PLC0415 - optional
    from onnxruntime.capi import onnxruntime_pybind11_state as state  # noqa: PLC0415 - optional

    # onnxruntime's own exceptions derive directly from Exception.
    own = (state.InvalidProtobuf, state.Fail, state.InvalidGraph, state.NoSuchFile, state.NotImplemented)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except (RuntimeError, ValueError, OSError, *own) as error:
        raise ModelError(f"{path}: onnxruntime cannot load it ({' '.join(str(error).split())[:200]}).") from error
