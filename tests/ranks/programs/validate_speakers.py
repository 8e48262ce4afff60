"""Validates the clips of a folder per speaker, without noise, in float64: for test_launch.py.

Runs on any number of ranks; the main rank writes the result to a file.
"""

import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from tests.support.small_networks import validate
from vits_trainer.distributed.runtime import Runtime

if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    Tensor.float = Tensor.double
    runtime = Runtime("fp32", 1)
    result = validate(runtime, Path(sys.argv[1]))
    if runtime.is_main_process:
        Path(sys.argv[2]).write_text(json.dumps([result.scalars, [vars(speaker) for speaker in result.speakers]]))
    runtime.close()
