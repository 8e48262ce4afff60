"""Reader for voices trained with Coqui TTS."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vits_trainer.models.conversion.layout import (
    ForeignCheckpoint,
    Layout,
    audio_notes,
    float_tensors,
    names_by_id,
    phoneme_notes,
    read_json,
    read_symbols_file,
)
from vits_trainer.utils import safe_pickle
from vits_trainer.utils.errors import ModelError

_COQUI_BLANK = "<BLNK>"


def read_coqui(
    content: Mapping[str, Any], checkpoint: Path, config_file: Path | None, vocab: Path | None
) -> ForeignCheckpoint:
    """Reads a Coqui TTS voice: ``model_file.pth`` or ``best_model.pth`` with config.json.

    Raises:
        ModelError: a file is missing or incomplete, or the voice uses a feature that ``VitsModel`` does not support.
    """
    path = config_file or checkpoint.with_name("config.json")
    config = read_json(path, "the voice's sizes (--config_file)")
    args, audio = config.get("model_args", {}), config.get("audio", {})
    unsupported = [
        name for name in ("use_d_vector_file", "use_language_embedding", "encoder_sample_rate") if args.get(name)
    ]
    if unsupported:
        raise ModelError(
            f"{path}: {', '.join(unsupported)}: transformers' VitsModel does not support external speaker vectors, "
            "language embeddings or two sampling rates. Convert a voice with speaker ids, or a single-speaker voice."
        )
    if len({args.get(f"dilation_rate_{part}", 1) for part in ("flow", "posterior_encoder")}) > 1:
        raise ModelError(
            f"{path}: flow and posterior encoder have different dilation rates; VitsModel supports only one."
        )
    try:
        config_values = _config_values(args) | {
            "sampling_rate": audio["sample_rate"],
            "spectrogram_bins": audio["fft_size"] // 2 + 1,
            "hop": audio["hop_length"],
        }
        notes = audio_notes({**audio, "sampling_rate": audio["sample_rate"], "filter_length": audio["fft_size"]})
    except KeyError as error:
        raise ModelError(
            f"{path}: {error} is missing. Pass the config.json that the voice was trained with."
        ) from error
    weights_by_name = {
        _original_name(name): tensor for name, tensor in float_tensors(content["model"], checkpoint).items()
    }
    discriminator_weights = {
        name: tensor for name, tensor in weights_by_name.items() if name.startswith("discriminators.")
    }
    weights = {name: tensor for name, tensor in weights_by_name.items() if name not in discriminator_weights}
    symbols, blank = _read_symbols(config, path, vocab)
    if config.get("add_blank", True) and 0 < blank < len(weights.get("enc_p.emb.weight", ())):
        # transformers inserts symbol 0 between the others, so symbol 0 and the blank are swapped.
        symbols[0], symbols[blank] = symbols[blank], symbols[0]
        embedding = weights["enc_p.emb.weight"].clone()
        embedding[[0, blank]] = embedding[[blank, 0]]
        weights["enc_p.emb.weight"] = embedding
    language = config.get("phoneme_language") if config.get("use_phonemes") else None
    if language:
        notes += phoneme_notes(language)
    if config.get("text_cleaner"):
        notes.append(
            f"its text cleaner ({config['text_cleaner']}) is not converted: provide texts that are already cleaned"
        )
    speakers = _read_speakers(checkpoint)
    return ForeignCheckpoint(
        weights,
        discriminator_weights,
        config_values | ({"speakers": speakers} if speakers else {}),
        symbols,
        {"add_blank": bool(config.get("add_blank", True)), "phonemize": bool(language), "language": language},
        notes,
        tuple(args.get("periods_multi_period_discriminator") or ()) or None,
    )


def _config_values(args: Mapping[str, Any]) -> dict[str, Any]:
    names = {
        "hidden_channels": "hidden_size",
        "hidden_channels_ffn_text_encoder": "ffn_dim",
        "num_heads_text_encoder": "num_attention_heads",
        "num_layers_text_encoder": "num_hidden_layers",
        "kernel_size_text_encoder": "ffn_kernel_size",
        "num_layers_posterior_encoder": "posterior_encoder_num_wavenet_layers",
        "num_layers_flow": "prior_encoder_num_wavenet_layers",
        "use_sdp": "use_stochastic_duration_prediction",
        "resblock_kernel_sizes_decoder": "resblock_kernel_sizes",
        "upsample_kernel_sizes_decoder": "upsample_kernel_sizes",
        "upsample_initial_channel_decoder": "upsample_initial_channel",
        "dilation_rate_flow": "wavenet_dilation_rate",
        "inference_noise_scale": "noise_scale",
        "inference_noise_scale_dp": "noise_scale_duration",
    }
    dropout = dict.fromkeys(
        ("hidden_dropout", "attention_dropout", "activation_dropout"), args.get("dropout_p_text_encoder", 0.1)
    )
    return {
        **{ours: args[source_name] for source_name, ours in names.items() if source_name in args},
        **dropout,
        **({"resblock_type": int(args["resblock_type_decoder"])} if "resblock_type_decoder" in args else {}),
        "upsample_rates": args["upsample_rates_decoder"],
        "resblock_dilation_sizes": args["resblock_dilation_sizes_decoder"],
        "speaking_rate": 1 / args.get("length_scale", 1.0),
    }


def _original_name(name: str) -> str:
    if name.startswith("flow."):  # the original has a flip after each flow in its list
        name = re.sub(r"(?<=^flow\.flows\.)\d+", lambda index: str(2 * int(index.group())), name)
    if name.startswith("duration_predictor."):
        name = re.sub(r"(?<=flows\.)\d+", lambda index: str(max(0, 2 * int(index.group()) - 1)), name)
        name = re.sub(r"\.translation$", ".m", re.sub(r"\.log_scale$", ".logs", name))
    for source_name, original_name in (
        ("text_encoder.", "enc_p."),
        ("posterior_encoder.", "enc_q."),
        ("duration_predictor.", "dp."),
        ("waveform_decoder.cond_layer.", "dec.cond."),
        ("waveform_decoder.", "dec."),
        ("disc.nets.", "discriminators."),
    ):
        if name.startswith(source_name):
            return original_name + name.removeprefix(source_name)
    return name


def _read_symbols(config: Mapping[str, Any], path: Path, vocab: Path | None) -> tuple[list[str], int]:
    """Returns symbols by id and the id of the blank, as Coqui TTS 0.22 derives them from its configuration."""
    characters = config.get("characters") or {}
    if vocab:
        symbols, blank = read_symbols_file(vocab), characters.get("blank") or _COQUI_BLANK
        return symbols, symbols.index(blank) if blank in symbols else 0
    kind = str(characters.get("characters_class")).rpartition(".")[2]
    letters, marks = characters.get("characters") or "", list(characters.get("punctuations") or "")
    if kind == "VitsCharacters":
        symbols = [characters["pad"], *marks, *letters, *(characters.get("phonemes") or ""), _COQUI_BLANK]
        return symbols, len(symbols) - 1
    if kind not in ("Graphemes", "IPAPhonemes"):
        raise ModelError(
            f"{path}: characters_class {kind} is not supported. Pass the symbols by --vocab: one per line in the order "
            f"of their ids, the blank as {_COQUI_BLANK}."
        )
    letters = characters.get("phonemes") or letters if kind == "IPAPhonemes" else letters
    middle = list(dict.fromkeys(letters)) if characters.get("is_unique", True) else list(letters)
    middle = sorted(middle) if characters.get("is_sorted", True) else middle
    special = [characters[name] for name in ("pad", "eos", "bos", "blank") if characters.get(name)]
    symbols = [*special, *middle, *marks]
    return symbols, symbols.index(characters["blank"]) if characters.get("blank") else 0


def _read_speakers(checkpoint: Path) -> list[str]:
    for name in ("speaker_ids.json", "speakers.json", "speakers.pth"):
        path = checkpoint.with_name(name)
        if path.is_file():
            ids = safe_pickle.load(path) if path.suffix == ".pth" else read_json(path, "the speaker names")
            return names_by_id(ids)
    return []


LAYOUT = Layout("coqui", "text_encoder.", read_coqui)
