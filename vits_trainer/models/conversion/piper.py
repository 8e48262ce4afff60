"""Reader for voices trained with Piper."""

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vits_trainer.models.conversion.layout import (
    MAX_SYMBOLS,
    ForeignCheckpoint,
    Layout,
    config_path,
    float_tensors,
    names_by_id,
    phoneme_notes,
    read_json,
    read_symbols_file,
    symbols_by_id,
)
from vits_trainer.models.conversion.original import original_config_values
from vits_trainer.utils.errors import ModelError


def read_piper(
    content: Mapping[str, Any], checkpoint: Path, config_file: Path | None, vocab: Path | None
) -> ForeignCheckpoint:
    """Reads a Piper voice: a Lightning checkpoint, which includes the sizes, with config.json for the phonemes.

    Raises:
        ModelError: a file is missing or incomplete, or ``VitsModel`` does not support its decoder.
    """
    path = config_path(checkpoint, config_file)
    config = read_json(path, "the voice's phonemes (--config_file)")
    parameters = content.get("hyper_parameters", {})
    parameters = dict(parameters) if isinstance(parameters, Mapping) else dict(vars(parameters))
    parts = voice_parts(config, path, vocab, checkpoint, parameters.get("sample_rate"))
    try:
        parts.config_values |= original_config_values(parameters, checkpoint)
        parts.config_values |= {"hop": parameters.get("hop_length", 256)}
    except KeyError as error:
        raise _missing(error, path, checkpoint) from error
    weights_by_name = float_tensors(content["state_dict"], checkpoint)
    for prefix, weights in (("model_g.", parts.weights), ("model_d.", parts.discriminator_weights)):
        weights |= {name.removeprefix(prefix): t for name, t in weights_by_name.items() if name.startswith(prefix)}
    return parts


def voice_parts(
    config: Mapping[str, Any], path: Path, vocab: Path | None, checkpoint: Path, rate: object = None
) -> ForeignCheckpoint:
    """Returns what the configuration of a Piper voice states; sizes and weights are left out.

    Args:
        config: its content.
        path: its file, for messages.
        vocab: symbols, in place of those of the configuration.
        checkpoint: of the same voice, for messages.
        rate: sampling rate in Hz, if the configuration has none.

    Raises:
        ModelError: a value is missing, or the symbols cannot be used.
    """
    try:
        ids = {} if vocab else config["phoneme_id_map"]
        rate = config.get("audio", {}).get("sample_rate") or rate or config["audio"]["sample_rate"]
    except KeyError as error:
        raise _missing(error, path, checkpoint) from error
    inference = config.get("inference", {})
    # Voices without phonemes also state an espeak language.
    language = config.get("espeak", {}).get("voice") if config.get("phoneme_type", "espeak") == "espeak" else None
    speakers = names_by_id(config.get("speaker_id_map"))
    notes = ["Piper starts each sentence with ^ and ends it with $; these marks are not used here"]
    symbols = read_symbols_file(vocab) if vocab else _symbols(ids, path, notes)
    return ForeignCheckpoint(
        {},
        {},
        {
            "sampling_rate": rate,
            "noise_scale": inference.get("noise_scale", 0.667),
            "noise_scale_duration": inference.get("noise_w", 0.8),
            "speaking_rate": 1 / inference.get("length_scale", 1.0),
            **({"speakers": speakers} if len(speakers) > 1 else {}),
        },
        symbols,
        {"add_blank": True, "phonemize": bool(language), "language": language},
        notes + (phoneme_notes(language) if language else []),
    )


def _missing(error: KeyError, path: Path, checkpoint: Path) -> ModelError:
    return ModelError(f"{checkpoint} or {path}: {error} is missing. Pass the files of the same training run.")


def _symbols(ids: Mapping[str, Sequence[int]], path: Path, notes: list[str]) -> list[str]:
    if list(ids.get("_", [])) != [0]:
        raise ModelError(f"{path}: the blank (_ in phoneme_id_map) must have id 0, as in transformers' tokenizer.")
    lost = [symbol for symbol, phoneme_ids in ids.items() if len(phoneme_ids) != 1 or len(symbol) != 1]
    if lost:
        symbols = " ".join(lost[:8])
        notes.append(f"transformers' tokenizer does not support phonemes with several characters or ids ({symbols})")
    indices = [index for phoneme_ids in ids.values() for index in phoneme_ids]
    if not all(type(index) is int and 0 <= index < MAX_SYMBOLS for index in indices):
        raise ModelError(f"{path}: phoneme_id_map has negative or too large ids. Pass the config.json of this voice.")
    # Piper decomposes texts, so that its voices have never read a composed symbol whose parts they know.
    return symbols_by_id({symbol: ids[symbol] for symbol in ids if not _is_decomposed(symbol, ids)})


def _is_decomposed(symbol: str, ids: Mapping[str, Sequence[int]]) -> bool:
    parts = unicodedata.normalize("NFD", symbol)
    return parts != symbol and all(part in ids for part in parts)


LAYOUT = Layout("piper", "model_g.", read_piper)
