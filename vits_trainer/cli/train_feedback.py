"""``train_feedback``: users' corrections into a voice that takes the old one's place, if it is better."""

from vits_trainer.config.feedback import FeedbackConfig
from vits_trainer.feedback import pipeline


def run(config: FeedbackConfig) -> int:
    """Learns the corrections that are new; returns 0, or the code of what stopped the training."""
    return pipeline.learn_corrections(config)
