"""``prepare_data``: converts recordings and texts to a folder that ``train_vits`` reads."""

import shlex

from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.preparation import upload
from vits_trainer.data.preparation.pipeline import prepare
from vits_trainer.data.preparation.summary import PreparationSummary
from vits_trainer.evaluation.recognizers import load_recognizer
from vits_trainer.utils.logging import log_to_console
from vits_trainer.utils.strings import printable


def run(config: PrepareConfig) -> int:
    """Prepares the folder, prints a summary, and uploads the shards to the Hub if ``--push_to_hub`` is given."""
    log_to_console()
    if config.push_to_hub is not None:
        upload.open_repository(config.push_to_hub)
    transcribe = None if config.transcribe is None else load_recognizer(config.transcribe, "--transcribe").transcribe
    summary = prepare(config, transcribe=transcribe)
    print(printable(summary_table(summary)))
    if config.push_to_hub is not None and not summary.missing_parts:
        print(f"On the Hub: {upload.push_dataset(summary.output_dir, config.push_to_hub)}")
    return 0


def summary_table(summary: PreparationSummary) -> str:
    """Formats the counts of accepted and rejected clips, warnings, a few clips, and the next command."""
    rows = [
        ("clips", f"{summary.accepted}"),
        ("hours", f"{summary.hours:.2f}"),
        ("mean seconds", f"{summary.mean_seconds:.2f}"),
        ("speakers", f"{summary.speakers}"),
        *([("shards", f"{summary.shards}")] if summary.shards else []),
        ("texts changed", f"{summary.texts_changed}"),
        ("rejected", f"{sum(summary.rejected.values())}"),
        *((f"  {reason}", f"{count}") for reason, count in summary.rejected.items()),
    ]
    name_width = max(len(name) for name, _ in rows)
    value_width = max(len(value) for _, value in rows)
    return "\n".join(
        [
            *(f"{name:<{name_width}}  {value:>{value_width}}" for name, value in rows),
            *(f"WARNING: {warning}" for warning in summary.warnings),
            *(f"Clip {example}" for example in summary.examples),
            *_next_steps(summary),
        ]
    )


def _next_steps(summary: PreparationSummary) -> list[str]:
    if summary.missing_parts:
        return [
            f"Prepared this part in {summary.output_dir}/shards.",
            f"Next: --part {', --part '.join(summary.missing_parts)}. The last part writes shards.json.",
        ]
    folder = shlex.quote(str(summary.output_dir))
    written = "shards/, shards.json" if summary.shards else "wavs/, metadata.csv"
    return [
        f"Prepared {summary.output_dir}: {written}, rejected.csv, dataset.json",
        f"Next: vits-trainer train_vits --data_dir {folder} --model_name facebook/mms-tts-eng",
        "(eng: the language of the texts as in ISO 639-3; or the folder of a voice)",
    ]
