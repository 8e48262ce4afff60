"""Console logging."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger("vits_trainer")


def log_to_console(is_main: bool = True) -> None:
    """Logs to stderr: INFO and above on the main rank, WARNING and above on the others."""
    logging.basicConfig(format="%(message)s")
    for library in ("datasets", "huggingface_hub"):  # they have handlers of their own: each line would appear twice
        logging.getLogger(library).propagate = False
    logger.setLevel(logging.INFO if is_main else logging.WARNING)
    if "transformers" in sys.modules:  # its progress bars would break up log lines
        from transformers.utils import logging as transformers_logging  # noqa: PLC0415 - takes seconds to import

        transformers_logging.disable_progress_bar()


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """Inside, transformers shows no progress bars, such as the one of loading weights, which takes milliseconds."""
    from transformers.utils import logging as transformers_logging  # noqa: PLC0415 - takes seconds to import

    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()
