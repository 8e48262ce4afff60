"""``train_feedback``: trains on users' corrections; the new voice replaces the served one if it is better."""

from vits_trainer.config.feedback import FeedbackConfig
from vits_trainer.feedback.pipeline import learn_corrections
from vits_trainer.utils.logging import log_to_console


def run(config: FeedbackConfig) -> int:
    """Learns the corrections that are new; returns 0, or the exit code of a training that was stopped."""
    log_to_console()
    return learn_corrections(config)
