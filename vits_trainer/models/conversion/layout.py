"""Common parts of the readers of other programs' voices: checkpoint contents, tensors, symbols."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor

from vits_trainer.models.parameter_names import with_legacy_weight_norm_names
from vits_trainer.text.languages import espeak_name
from vits_trainer.utils import records
from vits_trainer.utils.errors import ModelError
from vits_trainer.utils.installation import install_command

MAX_SYMBOLS = 1 << 20
"""Larger than the embedding of any voice."""
SymbolId = Annotated[int, Meta(ge=0, lt=MAX_SYMBOLS)]


@dataclass
class ForeignCheckpoint:
    """Contents of another program's checkpoint under common names."""

    weights: dict[str, Tensor]
    """Generator weights under the names of original VITS."""
    discriminator_weights: dict[str, Tensor]
    """Discriminator weights under the names of original VITS; may be empty."""
    config_values: dict[str, Any]
    """Configuration values under the names of ``VitsConfig``."""
    symbols: list[str]
    """Symbols by id; the first is the blank."""
    tokenizer_options: dict[str, Any] = field(default_factory=dict)
    """``add_blank``, ``phonemize``, ``language`` (of the phonemes) and ``is_uroman``."""
    notes: list[str] = field(default_factory=list)
    """Notes for the user about lost or changed properties."""
    periods: tuple[int, ...] | None = None
    """Periods of the discriminators, if the configuration states them."""
    fresh: tuple[str, ...] = ()
    """Prefixes of the original's weight names that the file lacks; new weights take their place."""


@dataclass(frozen=True)
class Layout:
    """Layout of another program's checkpoints."""

    name: str
    """As ``--from`` names it."""
    weight_prefix: str
    """Prefix of weight names that only this layout has."""
    read: Callable[[Mapping[str, Any], Path, Path | None, Path | None], ForeignCheckpoint]
    """Reads the content of a checkpoint: content, path, configuration file, file of symbols."""


def config_path(checkpoint: Path, config_file: Path | None) -> Path:
    """Returns ``config_file``, or else the configuration next to a checkpoint: VOICE.onnx.json or config.json."""
    own = checkpoint.with_name(f"{checkpoint.name}.json")
    if config_file is None and checkpoint.suffix == ".onnx" and own.is_file():
        return own
    return config_file or checkpoint.with_name("config.json")


def read_json(path: Path, purpose: str) -> dict[str, Any]:
    """Reads a JSON file with an object.

    Raises:
        ModelError: the file is missing or has other content; the message includes its ``purpose``.
    """
    remedy = f"It is required for {purpose}. Pass it by a flag."
    return records.read_json(path, dict[str, Any], ModelError, remedy, max_bytes=records.MAX_UNTYPED_BYTES)


def audio_notes(data: Mapping[str, Any]) -> list[str]:
    """Returns notes about audio settings that are not converted."""
    rate, window = data["sampling_rate"], data.get("win_length", data["filter_length"])
    notes = []
    if window != data["filter_length"]:
        notes.append(f"its spectrogram window has {window} samples; finetuning here uses {data['filter_length']}")
    if data.get("mel_fmin") or data.get("mel_fmax") not in (None, rate / 2):
        notes.append(
            f"its mel range is {data.get('mel_fmin')} to {data.get('mel_fmax')} Hz; here it is 0 to {rate / 2:g} Hz"
        )
    return notes


def read_symbols_file(path: Path) -> list[str]:
    """Reads symbols by id from vocab.txt (one per line; a space is a symbol) or vocab.json (ids by symbol).

    Raises:
        ModelError: the file cannot be read.
    """
    if path.suffix == ".json":
        ids = records.read_json(path, dict[str, SymbolId], ModelError, "Pass another file by --vocab.")
        if not ids or len(set(ids.values())) < len(ids):
            raise ModelError(f"{path}: must map symbols to unique ids. Pass another file by --vocab.")
        return symbols_by_id({symbol: [index] for symbol, index in ids.items()})
    lines = records.read_text(path, ModelError, "Pass another file by --vocab.").split("\n")
    if lines == [""]:
        raise ModelError(f"{path} is empty. Pass another file by --vocab.")
    return [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]


def symbols_by_id(ids: Mapping[str, Sequence[int]]) -> list[str]:
    """Returns symbols by id for symbols with a single id; other positions are empty strings."""
    symbols = [""] * (max(index for symbol_ids in ids.values() for index in symbol_ids) + 1)
    for symbol, symbol_ids in ids.items():
        if len(symbol_ids) == 1:
            symbols[symbol_ids[0]] = symbol
    return symbols


def names_by_id(ids: object) -> list[str]:
    """Returns names in the order of their ids; empty unless the ids are 0, 1, 2 ..."""
    if not isinstance(ids, dict) or sorted(map(str, ids.values())) != sorted(map(str, range(len(ids)))):
        return []
    return sorted(ids, key=lambda name: int(ids[name]))


def phoneme_notes(language: str) -> list[str]:
    """Returns notes about the phonemes of a language."""
    notes = [f"its texts are converted to phonemes of {language}: {install_command('text')}"]
    if espeak_name(language) != espeak_name(None):
        notes.append("transformers' own tokenizer would use American English phonemes: see docs/text.md")
    return notes


def float_tensors(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Returns the tensors of ``content`` in float32, with weight norm under its legacy names.

    Raises:
        ModelError: tensors are quantized, sparse, complex or without data; lists each.
    """
    tensors = {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
    unsupported = [
        name
        for name, tensor in tensors.items()
        if tensor.layout != torch.strided or tensor.is_complex() or tensor.is_quantized or tensor.is_meta
    ]
    if unsupported:
        raise ModelError(
            f"{path}: weights are quantized, sparse, complex or without data: {', '.join(unsupported)}. Convert the "
            "checkpoint from which they were created."
        )
    return with_legacy_weight_norm_names({name: tensor.float() for name, tensor in tensors.items()})
