"""Logging to the console."""

import logging

import transformers

logger = logging.getLogger("vits_trainer")


def log_to_console(is_main: bool) -> None:
    """What the package says goes to stderr: everything on the main rank, warnings elsewhere."""
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO if is_main else logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
