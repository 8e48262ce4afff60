"""Sentences to judge: the texts that the voice was not trained on."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from vits_trainer.config.feedback import FeedbackAppConfig
from vits_trainer.config.selection import ClipSelection
from vits_trainer.data.prepared import is_prepared, open_selected, train_validation_split
from vits_trainer.models import voice_versions
from vits_trainer.utils.strings import single_spaces


def held_out_texts(config: FeedbackAppConfig) -> list[str]:
    """Returns the texts of the voice's validation clips, as far as the page takes them; none without its data.

    Raises:
        ConfigError: the voice states speakers that the data lacks.
        DataError: the prepared folder cannot be read.
    """
    folder = Path(config.data_dir or Path(config.feedback_dir).resolve().parent)
    if config.data_dir is None and not is_prepared(folder):
        return []
    selection = voice_versions.read_selection(Path(config.model_dir)) or ClipSelection()
    prepared = open_selected(folder, selection, names_speaker=True)
    _, rows = train_validation_split(
        prepared, selection.validation_fraction, selection.validation_max_clips, selection.seed
    )
    texts = dict.fromkeys(single_spaces(prepared.rows.text[row]) for row in rows)
    return [text for text in texts if 0 < len(text) <= config.max_text_characters]


def next_text(texts: Sequence[str], ratings: Mapping[str, str], current: str) -> str:
    """Returns the next text after ``current`` that has no mark; the next one if all have."""
    start = texts.index(current) + 1 if current in texts else 0
    turned = [*texts[start:], *texts[:start]]
    return next((text for text in turned if text not in ratings and text != current), turned[0])
