"""The held-out clips of a folder validate speaker by speaker, without noise, in float64: for test_launch.py.

On as many ranks as there are; the main one writes what they found to a file.
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
    ranks = Runtime("fp32", 1)
    found = validate(ranks, Path(sys.argv[1]))
    if ranks.is_main_process:
        Path(sys.argv[2]).write_text(json.dumps([found.scalars, [vars(speaker) for speaker in found.speakers]]))
    ranks.close()
