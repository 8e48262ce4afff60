"""``train_vits``: trains a voice on prepared data."""

from vits_trainer.config.train import TrainConfig
from vits_trainer.training.run import train


def run(config: TrainConfig) -> int:
    """Trains and exports; returns 0, or the exit code of what stopped the run. Runs on every rank."""
    return train(config).exit_code
