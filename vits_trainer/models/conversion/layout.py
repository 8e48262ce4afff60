"""What the importers of other trainers' voices share: the parts of a voice, tensors, symbols."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vits_trainer.models.parameter_names import named_as_original
from vits_trainer.text.languages import espeak_name
from vits_trainer.utils.errors import ModelError

_MOST_SYMBOLS = 1 << 20
"""Far beyond any voice's embedding."""


@dataclass
class ForeignCheckpoint:
    """A voice taken apart."""

    weights: dict[str, Tensor]
    """The generator's, by the original's names."""
    discriminator_weights: dict[str, Tensor]
    """The discriminators', likewise; empty where there are none."""
    config_values: dict[str, Any]
    """What its configuration says, by the names of ``VitsConfig``."""
    symbols: list[str]
    """By id; the first is the blank."""
    tokenizer_options: dict[str, Any] = field(default_factory=dict)
    """``add_blank``, ``phonemize``, ``language`` (of the phonemes), ``is_uroman``."""
    notes: list[str] = field(default_factory=list)
    """What is lost or must be known, for people."""
    periods: tuple[int, ...] | None = None
    """Of the discriminators, where the configuration states them."""


def read_json(path: Path, wanted: str) -> Any:
    """The content of a JSON file.

    Raises:
        ModelError: it is not there, or no JSON; says what it is ``wanted`` for.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read ({error}); it is needed for {wanted}. Name it by a flag.") from error


def _notes_on_audio(data: Mapping[str, Any]) -> list[str]:
    rate, window = data["sampling_rate"], data.get("win_length", data["filter_length"])
    notes = []
    if window != data["filter_length"]:
        notes.append(f"its spectrogram's window has {window} samples; tuned here it has {data['filter_length']}")
    if data.get("mel_fmin") or data.get("mel_fmax") not in (None, rate / 2):
        notes.append(
            f"its mel went from {data.get('mel_fmin')} to {data.get('mel_fmax')} Hz; here it is all up to half the rate"
        )
    return notes


def symbols_from(path: Path) -> list[str]:
    """Symbols by id: of vocab.txt one a line (a space is a symbol), of vocab.json ids by symbol.

    Raises:
        ModelError: the file cannot be read.
    """
    if path.suffix == ".json":
        ids = read_json(path, "the voice's symbols (--vocab)")
        known = isinstance(ids, dict) and all(
            type(index) is int and 0 <= index < _MOST_SYMBOLS for index in ids.values()
        )
        if not known or not ids or len(set(ids.values())) < len(ids):
            raise ModelError(f"{path} holds no ids by symbol, each its own. Name another file by --vocab.")
        return _in_places({symbol: [index] for symbol, index in ids.items()})
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: no symbols could be read ({error}). Name another file by --vocab.") from error
    if lines == [""]:
        raise ModelError(f"{path} is empty. Name another file by --vocab.")
    return [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]


def _in_places(ids: Mapping[str, Sequence[int]]) -> list[str]:
    """Symbols by id, of those that have one id; the other places are empty."""
    symbols = [""] * (max(index for several in ids.values() for index in several) + 1)
    for symbol, several in ids.items():
        if len(several) == 1:
            symbols[several[0]] = symbol
    return symbols


def _by_id(ids: object) -> list[str]:
    """Names in the order of their ids; none where these are not 0, 1, 2 ..."""
    if not isinstance(ids, dict) or sorted(map(str, ids.values())) != sorted(map(str, range(len(ids)))):
        return []
    return sorted(ids, key=lambda name: int(ids[name]))


def _notes_on_phonemes(language: str) -> list[str]:
    notes = [f"its texts become phonemes of {language}: pip install 'vits-trainer[text]'"]
    if espeak_name(language) != espeak_name(None):
        notes.append("transformers' own tokenizer would make American English ones: see docs/text.md")
    return notes


def _tensors(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The tensors among ``content`` in float32, weight norm under its legacy names.

    Raises:
        ModelError: some are no plain numbers; each is named.
    """
    found = {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
    strange = [
        name
        for name, tensor in found.items()
        if tensor.layout != torch.strided or tensor.is_complex() or tensor.is_quantized or tensor.is_meta
    ]
    if strange:
        raise ModelError(
            f"{path}: these weights are quantized, sparse, complex or absent: {', '.join(strange)}. Convert the "
            "checkpoint that they were made of."
        )
    return named_as_original({name: tensor.float() for name, tensor in found.items()})
