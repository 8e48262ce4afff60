"""Programs on a CUDA device that executes no kernel: PyTorch's host code, allocator and Triton's compiler are real.

The device is built from ``../shared/tools/fakecuda`` by gcc. Values are zeros or garbage, times are not a GPU's;
launches, host synchronization, memory and failures are real.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUN = ROOT.parent / "shared/tools/fakecuda/run.sh"


def missing_requirement() -> str:
    """Returns why the stand-in cannot be used, or an empty string."""
    if not RUN.is_file():
        return "needs ../shared/tools/fakecuda"
    return "" if shutil.which("gcc") else "the stand-in for a GPU is built by gcc"


def with_graphs(folder: Path) -> Path:
    """Builds CUDA graphs for the stand-in, which has none: a library for ``preload``."""
    library = folder / "cuda_graphs.so"
    source = Path(__file__).with_name("cuda_graphs.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", str(source), "-o", str(library)], check=True)
    return library


def run(
    *words: str, capability: int = 90, gib: int = 80, path: str | None = None, preload: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs ``python *words`` on the stand-in.

    Args:
        words: arguments of Python.
        capability: compute capability, such as 75.
        gib: memory of the device.
        path: PATH of the program; the stand-in is built with this process's own.
        preload: a library whose functions replace those of the stand-in.
    """
    python = [sys.executable, *words] if path is None else ["env", f"PATH={path}", sys.executable, *words]
    if preload is not None:
        python = ["bash", "-c", 'LD_PRELOAD=$0:$LD_PRELOAD exec "$@"', str(preload), *python]
    own = {name: value for name, value in os.environ.items() if not name.startswith(("CUDA_", "ACCELERATE_"))}
    device = {"FAKE_CUDA_SM": str(capability), "FAKE_CUDA_GIB": str(gib), "PYTHON": sys.executable}
    return subprocess.run(
        ["bash", str(RUN), *python],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**own, **device, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
