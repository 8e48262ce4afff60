"""The layout of voices trained with Piper."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vits_trainer.models.conversion.layout import (
    _MOST_SYMBOLS,
    ForeignCheckpoint,
    _by_id,
    _in_places,
    _notes_on_phonemes,
    _tensors,
    read_json,
    symbols_from,
)
from vits_trainer.models.conversion.original import _stated_by_original
from vits_trainer.utils.errors import ModelError


def piper_parts(
    content: Mapping[str, Any], checkpoint: Path, config_file: Path | None, vocab: Path | None
) -> ForeignCheckpoint:
    """Of Piper: a checkpoint of Lightning's, which holds its own sizes, with config.json for the phonemes.

    Raises:
        ModelError: a file is missing or lacks something, or its decoder has no place in ``VitsModel``.
    """
    path = config_file or checkpoint.with_name("config.json")
    config = read_json(path, "the voice's phonemes (--config_file)")
    said = content.get("hyper_parameters", {})
    said = dict(said) if isinstance(said, Mapping) else dict(vars(said))
    try:
        stated = _stated_by_original(said, checkpoint)
        rate = config.get("audio", {}).get("sample_rate") or said["sample_rate"]
        stated |= {"sampling_rate": rate, "hop": said.get("hop_length", 256)}
        ids = {} if vocab else config["phoneme_id_map"]
    except KeyError as error:
        raise ModelError(f"{checkpoint} or {path} lacks {error}: give the files of one training.") from error
    everything = _tensors(content["state_dict"], checkpoint)
    spoken = config.get("inference", {})
    # Voices of letters name a language of espeak's, too.
    speech = config.get("espeak", {}).get("voice") if config.get("phoneme_type", "espeak") == "espeak" else None
    stated |= {
        "noise_scale": spoken.get("noise_scale", 0.667),
        "noise_scale_duration": spoken.get("noise_w", 0.8),
        "speaking_rate": 1 / spoken.get("length_scale", 1.0),
    }
    speakers = _by_id(config.get("speaker_id_map"))
    framing = "Piper begins each sentence with ^ and ends it with $; here sentences have no such marks"
    notes = [framing]
    return ForeignCheckpoint(
        {name.removeprefix("model_g."): t for name, t in everything.items() if name.startswith("model_g.")},
        {name.removeprefix("model_d."): t for name, t in everything.items() if name.startswith("model_d.")},
        stated | ({"speakers": speakers} if len(speakers) > 1 else {}),
        symbols_from(vocab) if vocab else _symbols_of_piper(ids, path, notes),
        {"add_blank": True, "phonemize": bool(speech), "language": speech},
        notes + (_notes_on_phonemes(speech) if speech else []),
    )


def _symbols_of_piper(ids: Mapping[str, Sequence[int]], path: Path, notes: list[str]) -> list[str]:
    if list(ids.get("_", [])) != [0]:
        raise ModelError(f"{path}: the blank (_ in phoneme_id_map) is not 0, where transformers' tokenizer has it.")
    lost = [symbol for symbol, several in ids.items() if len(several) != 1 or len(symbol) != 1]
    if lost:
        notes.append(
            f"phonemes of several characters or ids ({' '.join(lost[:8])}) are not made by transformers' tokenizer"
        )
    if not all(0 <= index < _MOST_SYMBOLS for several in ids.values() for index in several):
        raise ModelError(f"{path}: ids of phoneme_id_map are below 0 or beyond any embedding. Give the voice's own.")
    return _in_places(ids)
