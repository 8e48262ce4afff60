"""Settings that change with the update."""

from dataclasses import replace

import pytest
import torch

from vits_trainer.config.architecture import Architecture
from vits_trainer.config.framing import AudioSpec
from vits_trainer.config.train import LossWeights, TrainConfig
from vits_trainer.models.alignment import score_std
from vits_trainer.models.generator import Generator
from vits_trainer.models.initialization import new_model
from vits_trainer.text.tokenizer import build_tokenizer
from vits_trainer.training.annealing import alignment_noise_at, annealed, kl_share_at
from vits_trainer.training.objective import Objective
from vits_trainer.utils.errors import ConfigError

CONFIG = TrainConfig(model_name=None, architecture=Architecture(), kl_warmup_updates=4, alignment_noise=0.01)


def test_kl_weight_rises_linearly() -> None:
    assert [kl_share_at(CONFIG, update) for update in (0, 1, 3, 4, 900)] == [0.25, 0.5, 1, 1, 1]
    assert kl_share_at(replace(CONFIG, kl_warmup_updates=0), 0) == 1


def test_alignment_noise_falls_to_zero() -> None:
    values = [alignment_noise_at(CONFIG, update) for update in (0, 1, 5000, 9000)]
    assert values == pytest.approx([0.01, 0.009998, 0, 0], abs=1e-12)


def test_only_the_kl_divergence_is_annealed_and_only_inside() -> None:
    objective = Objective("vits", LossWeights(), AudioSpec(16000), 32)
    generator = Generator(new_model(Architecture(hidden_size=16), build_tokenizer(["ab"]), []), "posterior", 32)
    terms = {name: torch.tensor(10.0**power) for power, name in enumerate(objective.terms)}
    full = objective.total(terms)
    with annealed(CONFIG, 1, objective, generator):
        assert full - objective.total(terms) == pytest.approx(0.5 * terms["kl"].item())
        assert generator.alignment_noise > 0
    assert objective.total(terms) == full
    assert generator.alignment_noise == 0


def test_standard_deviation_of_scores_is_that_of_their_clip() -> None:
    scores = torch.randn(2, 7, 5, dtype=torch.float64)
    frames, tokens = torch.ones(2, 1, 7), torch.ones(2, 1, 5)
    frames[1, :, 4:], tokens[1, :, 3:] = 0, 0
    expected = [scores[0].std(correction=0), scores[1, :4, :3].std(correction=0)]
    torch.testing.assert_close(score_std(scores, frames, tokens).flatten(), torch.stack(expected))


def test_noise_requires_training_from_scratch() -> None:
    with pytest.raises(ConfigError, match="from scratch"):
        TrainConfig(alignment_noise=0.01)


def test_other_rate_of_the_discriminators() -> None:
    assert TrainConfig(learning_rate=2e-4).discriminator_learning_rate_factor == 1
    other = TrainConfig(learning_rate=2e-4, discriminator_learning_rate=1e-4)
    assert other.discriminator_learning_rate_factor == 0.5
