"""The order of validations by one metric. Imports no torch."""

from vits_trainer.config.options import HIGHER_IS_BETTER, SCORES, UNRELIABLE_CER

ERROR_RATES = SCORES["cer"]


def rank(metric: str, value: float, mel: float) -> tuple[float, float]:
    """Returns a sort key of a validation: the lower, the better.

    For error rates of speech recognition, the mel decides between validations with equal rates, and between those where
    the recognizer understands too little: a voice from scratch has a CER near 1 for thousands of updates.

    Args:
        metric: its name, without ``validation/``.
        value: its value.
        mel: value of ``validation/mel``.
    """
    if metric in ERROR_RATES:
        return min(value, UNRELIABLE_CER), mel
    return (-value if metric in HIGHER_IS_BETTER else value), 0.0
