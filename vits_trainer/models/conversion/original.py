"""Reader for voices of original VITS and MMS-TTS, whose names other readers convert to.

Layouts as published by their authors: jaywalnut310/vits (``train.py``, ``utils.py``), the MMS-TTS of
facebookresearch/fairseq (the same, with vocab.txt), coqui-ai/TTS (``TTS/tts/models/vits.py``), rhasspy/piper
(``vits/lightning.py``).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vits_trainer.models.conversion.layout import (
    ForeignCheckpoint,
    Layout,
    audio_notes,
    float_tensors,
    read_json,
    read_symbols_file,
)
from vits_trainer.utils.errors import ModelError


def read_original(
    content: Mapping[str, Any], checkpoint: Path, config_file: Path | None, vocab: Path | None
) -> ForeignCheckpoint:
    """Reads a voice of original VITS or MMS-TTS: ``G_*.pth`` with config.json and a separate file of symbols.

    Raises:
        ModelError: a file is missing or incomplete.
    """
    path = config_file or checkpoint.with_name("config.json")
    config = read_json(path, "the voice's sizes (--config_file)")
    try:
        model, data = config["model"], config["data"]
        config_values = original_config_values(model, path) | {
            "sampling_rate": data["sampling_rate"],
            "spectrogram_bins": data["filter_length"] // 2 + 1,
            "hop": data["hop_length"],
        }
    except KeyError as error:
        raise ModelError(
            f"{path}: {error} is missing. Pass the config.json that the voice was trained with."
        ) from error
    files = str(data.get("training_files", ""))
    is_mms = files.endswith((".ltr", ".uroman"))
    cleaners = [] if is_mms else list(data.get("text_cleaners", []))
    phonemize = "english_cleaners2" in cleaners
    notes = audio_notes(data)
    unconverted = [name for name in cleaners if name != "english_cleaners2"]
    if unconverted:
        notes.append(
            f"its text cleaners ({', '.join(unconverted)}) are not converted: provide texts that are already cleaned"
        )
    weights = float_tensors(content["model"], checkpoint)
    return ForeignCheckpoint(
        weights,
        {},
        config_values,
        _read_symbols(config, checkpoint, vocab, len(weights.get("enc_p.emb.weight", ()))),
        {
            "add_blank": bool(data.get("add_blank", True)),
            "phonemize": phonemize,
            "is_uroman": files.endswith(".uroman"),
        },
        notes,
    )


def original_config_values(model: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Returns the sizes of the original's ``SynthesizerTrn``, also used by Piper; ``path`` is for error messages."""
    if model.get("use_spectral_norm"):
        raise ModelError(
            f"{path}: discriminators with spectral norm are not supported. Set use_spectral_norm to false in this file "
            "and move D_* away: the voice itself has no spectral norm."
        )
    names = {
        "hidden_channels": "hidden_size",
        "inter_channels": "flow_size",
        "filter_channels": "ffn_dim",
        "n_heads": "num_attention_heads",
        "n_layers": "num_hidden_layers",
        "kernel_size": "ffn_kernel_size",
        "use_sdp": "use_stochastic_duration_prediction",
        "resblock_kernel_sizes": "resblock_kernel_sizes",
        "upsample_kernel_sizes": "upsample_kernel_sizes",
        "upsample_initial_channel": "upsample_initial_channel",
    }
    dropout = dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout"), model.get("p_dropout", 0.1))
    return {
        **{name: model[source_name] for source_name, name in names.items() if source_name in model},
        **dropout,
        **({"resblock_type": int(model["resblock"])} if "resblock" in model else {}),
        "upsample_rates": model["upsample_rates"],
        "resblock_dilation_sizes": model["resblock_dilation_sizes"],
    }


def _read_symbols(config: Mapping[str, Any], checkpoint: Path, vocab: Path | None, size: int) -> list[str]:
    for path in [vocab] if vocab else [checkpoint.with_name("vocab.txt"), checkpoint.with_name("vocab.json")]:
        if vocab or path.is_file():
            return read_symbols_file(path)
    symbols = config.get("symbols")
    if symbols and all(isinstance(symbol, str) for symbol in symbols):
        return list(symbols)
    raise ModelError(
        f"{checkpoint} has {size} symbols but does not list them. Put vocab.txt next to it or pass it by --vocab: "
        "one symbol per line in the order of their ids (MMS provides it; for original VITS see text/symbols.py)."
    )


LAYOUT = Layout("original", "enc_p.", read_original)
