"""``prepare_data``: recordings and texts, from wherever they are, into one folder that ``train_vits`` reads."""

import logging
import shlex

from vits_trainer.config_data import PrepareConfig
from vits_trainer.preparation import prepare
from vits_trainer.summary import PreparationSummary


def run(config: PrepareConfig) -> int:
    """Prepares the folder, and says what came of every clip."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("vits_trainer").setLevel(logging.INFO)
    print(closing_table(prepare(config)))
    return 0


def closing_table(summary: PreparationSummary) -> str:
    """What was accepted, what was left out and why, where it lies, and what to do next."""
    rows = [
        ("clips", f"{summary.accepted}"),
        ("hours", f"{summary.hours:.2f}"),
        ("mean seconds", f"{summary.mean_seconds:.2f}"),
        ("speakers", f"{summary.speakers}"),
        ("texts changed", f"{summary.texts_changed}"),
        ("rejected", f"{sum(summary.rejected.values())}"),
        *((f"  {reason}", f"{count}") for reason, count in summary.rejected.items()),
    ]
    name_width = max(len(name) for name, _ in rows)
    value_width = max(len(value) for _, value in rows)
    return "\n".join(
        [
            *(f"{name:<{name_width}}  {value:>{value_width}}" for name, value in rows),
            f"Prepared {summary.output_dir}: wavs/, metadata.csv, rejected.csv, dataset.json",
            f"Next: vits-trainer train_vits --data_dir {shlex.quote(str(summary.output_dir))}",
        ]
    )
