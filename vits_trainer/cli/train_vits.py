"""``train_vits``: a prepared folder and a voice (or an architecture) into a trained voice."""

from vits_trainer.config.train import TrainConfig
from vits_trainer.training import run as training_run


def run(config: TrainConfig) -> int:
    """Trains, exports, and returns 0; or the code of what stopped it before. Runs on every rank."""
    return training_run.train(config)
