"""The held-out clips of a folder judged speaker by speaker, without noise, in float64: for test_launch.py.

On as many ranks as there are; the main one writes what they found to a file.
"""

import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from tests.distributed.gradients import SIZES, first_segments
from vits_trainer.architecture import Architecture
from vits_trainer.config import LossWeights
from vits_trainer.data import ClipReader, open_prepared
from vits_trainer.evaluation import Judged, Validation
from vits_trainer.generator import Generator
from vits_trainer.models import audio_spec, new_model
from vits_trainer.objective import Objective
from vits_trainer.runtime import Runtime
from vits_trainer.text import build_tokenizer


def judged(runtime: Runtime, data_dir: Path, rows: list[int] | None = None, batch_size: int = 2) -> Judged:
    """By a voice with random weights that decodes the first frames of each clip."""
    prepared = open_prepared(data_dir)
    tokenizer = build_tokenizer(prepared.rows["text"])
    torch.manual_seed(0)
    model = new_model(Architecture(**SIZES), tokenizer, prepared.speakers)
    generator = Generator(model, "posterior", 60)
    generator.noise = torch.zeros_like
    generator.forward = first_segments(generator)
    spec = audio_spec(model.config)
    ids = {name: number for number, name in enumerate(prepared.speakers)}
    reader = ClipReader(prepared, tokenizer, spec, ids)
    given = list(range(len(prepared.rows))) if rows is None else rows
    objective = Objective("mel", LossWeights(), spec, 60)
    return Validation(runtime, objective, reader, given, batch_size, seed=0).run(generator, None)


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    Tensor.float = Tensor.double
    ranks = Runtime("fp32", 1)
    found = judged(ranks, Path(sys.argv[1]))
    if ranks.is_main:
        Path(sys.argv[2]).write_text(json.dumps([found.scalars, [vars(speaker) for speaker in found.speakers]]))
    ranks.close()
