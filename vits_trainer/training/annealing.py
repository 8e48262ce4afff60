"""Settings of the objective that change with the update, as pure functions of it, so that a resumed run agrees."""

from collections.abc import Iterator
from contextlib import contextmanager

from vits_trainer.config.train import TrainConfig
from vits_trainer.models.generator import Generator
from vits_trainer.training.objective import Objective

ALIGNMENT_NOISE_DECAY = 2e-6
"""By which the noise falls in each update (VITS 2, Kong et al. 2023, section 2.2)."""


def kl_share_at(config: TrainConfig, update: int) -> float:
    """Returns the share of the KL weight in ``update``, from 0: linear up to 1 after ``kl_warmup_updates``."""
    return min(1.0, (update + 1) / config.kl_warmup_updates) if config.kl_warmup_updates else 1.0


def alignment_noise_at(config: TrainConfig, update: int) -> float:
    """Returns the noise on the alignment search's scores in ``update``, relative to their standard deviation."""
    return max(0.0, config.alignment_noise - ALIGNMENT_NOISE_DECAY * update)


@contextmanager
def annealed(config: TrainConfig, update: int, objective: Objective, generator: Generator) -> Iterator[None]:
    """Inside, objective and generator have the settings of ``update``; outside, as in validation, the final ones."""
    objective.kl_share = kl_share_at(config, update)
    generator.alignment_noise = alignment_noise_at(config, update)
    try:
        yield
    finally:
        objective.kl_share, generator.alignment_noise = 1.0, 0.0
