"""Small networks whose metrics do not depend on the number of ranks."""

from pathlib import Path

import torch

from vits_trainer.config.architecture import Architecture
from vits_trainer.config.train import LossWeights
from vits_trainer.data.dataset import PreparedClipDataset
from vits_trainer.data.prepared import open_prepared
from vits_trainer.distributed.runtime import Runtime
from vits_trainer.models.generator import Generator
from vits_trainer.models.initialization import new_model
from vits_trainer.models.pretrained import audio_spec
from vits_trainer.text.tokenizer import build_tokenizer
from vits_trainer.training.objective import Objective
from vits_trainer.training.validation import Validation, ValidationResult

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "ffn_dim": 32, "upsample_initial_channel": 16}


def first_segments(generator: Generator):
    """Returns a forward method that decodes the first segment of each clip."""
    original = generator.forward

    def forward(*arguments: object) -> object:
        *others, _ = arguments
        return original(*others, torch.zeros(len(arguments[0]), dtype=torch.long))

    return forward


def validate(runtime: Runtime, data_dir: Path, rows: list[int] | None = None, batch_size: int = 2) -> ValidationResult:
    """Validates a voice with random weights that decodes the first segment of each clip."""
    prepared = open_prepared(data_dir)
    tokenizer = build_tokenizer(prepared.rows.text)
    torch.manual_seed(0)
    model = new_model(Architecture(**SIZES), tokenizer, prepared.speakers)
    generator = Generator(model, "posterior", 60)
    generator.noise = torch.zeros_like
    generator.forward = first_segments(generator)
    spec = audio_spec(model.config)
    ids = {name: number for number, name in enumerate(prepared.speakers)}
    dataset = PreparedClipDataset(prepared, tokenizer, spec, ids)
    validation_rows = list(range(len(prepared.rows))) if rows is None else rows
    objective = Objective("mel", LossWeights(), spec, 60)
    return Validation(runtime, objective, dataset, validation_rows, seed=0, segment_frames=60).run(generator, None)
