"""Voices as other trainers keep them, in the words of original VITS: weights, sizes, symbols.

Layouts as their authors publish them: jaywalnut310/vits (``train.py``, ``utils.py``), the MMS-TTS of
facebookresearch/fairseq (the same, with vocab.txt), coqui-ai/TTS (``TTS/tts/models/vits.py``), rhasspy/piper
(``vits/lightning.py``).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vits_trainer.models.conversion.layout import ForeignCheckpoint, _notes_on_audio, _tensors, read_json, symbols_from
from vits_trainer.utils.errors import ModelError


def original_parts(
    content: Mapping[str, Any], checkpoint: Path, config_file: Path | None, vocab: Path | None
) -> ForeignCheckpoint:
    """Of original VITS or MMS-TTS: ``G_*.pth`` with config.json, and the symbols in a file of their own.

    Raises:
        ModelError: a file is missing or lacks something.
    """
    path = config_file or checkpoint.with_name("config.json")
    config = read_json(path, "the voice's sizes (--config_file)")
    try:
        model, data = config["model"], config["data"]
        stated = _stated_by_original(model, path) | {
            "sampling_rate": data["sampling_rate"],
            "spectrogram_bins": data["filter_length"] // 2 + 1,
            "hop": data["hop_length"],
        }
    except KeyError as error:
        raise ModelError(f"{path} lacks {error}: give the config.json that the voice was trained with.") from error
    files = str(data.get("training_files", ""))
    is_mms = files.endswith((".ltr", ".uroman"))
    cleaners = [] if is_mms else list(data.get("text_cleaners", []))
    phonemize = "english_cleaners2" in cleaners
    notes = _notes_on_audio(data)
    left = [name for name in cleaners if name != "english_cleaners2"]
    if left:
        notes.append(f"its text cleaners ({', '.join(left)}) are not carried over: give texts as they would leave them")
    weights = _tensors(content["model"], checkpoint)
    return ForeignCheckpoint(
        weights,
        {},
        stated,
        _symbols_of_original(config, checkpoint, vocab, len(weights.get("enc_p.emb.weight", ()))),
        {
            "add_blank": bool(data.get("add_blank", True)),
            "phonemize": phonemize,
            "is_uroman": files.endswith(".uroman"),
        },
        notes,
    )


def _stated_by_original(model: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Sizes of the original's ``SynthesizerTrn``, also as Piper hands them to it; ``path`` says them."""
    if str(model.get("resblock", "1")) != "1":
        raise ModelError(
            f"{path}: its decoder is built of residual blocks of type 2 (Piper's low and medium quality have them), "
            "for which transformers' VitsModel has no place. Convert a voice with type 1 (resblock 1; Piper's high "
            "quality)."
        )
    if model.get("use_spectral_norm"):
        raise ModelError(
            f"{path}: its discriminators have spectral norm, for which there is no place here. Set use_spectral_norm "
            "to false there and move D_* away: the voice itself has none."
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
        **{ours: model[theirs] for theirs, ours in names.items() if theirs in model},
        **dropout,
        "upsample_rates": model["upsample_rates"],
        "resblock_dilation_sizes": model["resblock_dilation_sizes"],
    }


def _symbols_of_original(config: Mapping[str, Any], checkpoint: Path, vocab: Path | None, size: int) -> list[str]:
    for path in [vocab] if vocab else [checkpoint.with_name("vocab.txt"), checkpoint.with_name("vocab.json")]:
        if vocab or path.is_file():
            return symbols_from(path)
    symbols = config.get("symbols")
    if symbols and all(isinstance(symbol, str) for symbol in symbols):
        return list(symbols)
    raise ModelError(
        f"{checkpoint} has {size} symbols and does not say which. Put vocab.txt beside it or name it by --vocab: one "
        "symbol a line in the order of their ids (MMS has one; of original VITS it is symbols in text/symbols.py)."
    )
