"""The layout of voices trained with Coqui TTS."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vits_trainer.models.conversion.layout import (
    ForeignCheckpoint,
    _by_id,
    _notes_on_audio,
    _notes_on_phonemes,
    _tensors,
    read_json,
    symbols_from,
)
from vits_trainer.utils import safe_pickle
from vits_trainer.utils.errors import ModelError

_COQUIS_BLANK = "<BLNK>"


def coqui_parts(
    content: Mapping[str, Any], checkpoint: Path, config_file: Path | None, vocab: Path | None
) -> ForeignCheckpoint:
    """Of Coqui TTS: ``model_file.pth`` or ``best_model.pth`` with config.json.

    Raises:
        ModelError: a file is missing or lacks something, or the voice has what ``VitsModel`` has no place for.
    """
    path = config_file or checkpoint.with_name("config.json")
    config = read_json(path, "the voice's sizes (--config_file)")
    args, audio = config.get("model_args", {}), config.get("audio", {})
    foreign = [
        name for name in ("use_d_vector_file", "use_language_embedding", "encoder_sample_rate") if args.get(name)
    ]
    if foreign:
        raise ModelError(
            f"{path}: {', '.join(foreign)}: voices with speaker vectors from outside, with languages or with two "
            "sampling rates have no place in transformers' VitsModel. Convert one with speaker ids, or of one speaker."
        )
    if len({args.get(f"dilation_rate_{part}", 1) for part in ("flow", "posterior_encoder")}) > 1:
        raise ModelError(
            f"{path}: flow and posterior encoder have different dilation rates; VitsModel has one for both."
        )
    try:
        stated = _stated_by_coqui(args, path) | {
            "sampling_rate": audio["sample_rate"],
            "spectrogram_bins": audio["fft_size"] // 2 + 1,
            "hop": audio["hop_length"],
        }
        notes = _notes_on_audio({**audio, "sampling_rate": audio["sample_rate"], "filter_length": audio["fft_size"]})
    except KeyError as error:
        raise ModelError(f"{path} lacks {error}: give the config.json that the voice was trained with.") from error
    everything = {
        _original_name_of_coqui(name): tensor for name, tensor in _tensors(content["model"], checkpoint).items()
    }
    judges = {name: tensor for name, tensor in everything.items() if name.startswith("discriminators.")}
    weights = {name: tensor for name, tensor in everything.items() if name not in judges}
    symbols, blank = _symbols_of_coqui(config, path, vocab)
    if config.get("add_blank", True) and 0 < blank < len(weights.get("enc_p.emb.weight", ())):
        # transformers puts the symbol 0 between the others: this one changes places with the blank.
        symbols[0], symbols[blank] = symbols[blank], symbols[0]
        embedding = weights["enc_p.emb.weight"].clone()
        embedding[[0, blank]] = embedding[[blank, 0]]
        weights["enc_p.emb.weight"] = embedding
    language = config.get("phoneme_language") if config.get("use_phonemes") else None
    if language:
        notes += _notes_on_phonemes(language)
    if config.get("text_cleaner"):
        notes.append(
            f"its text cleaner ({config['text_cleaner']}) is not carried over: give texts as it would leave them"
        )
    speakers = _speakers_of_coqui(checkpoint)
    return ForeignCheckpoint(
        weights,
        judges,
        stated | ({"speakers": speakers} if speakers else {}),
        symbols,
        {"add_blank": bool(config.get("add_blank", True)), "phonemize": bool(language), "language": language},
        notes,
        tuple(args.get("periods_multi_period_discriminator") or ()) or None,
    )


def _stated_by_coqui(args: Mapping[str, Any], path: Path) -> dict[str, Any]:
    if str(args.get("resblock_type_decoder", "1")) != "1":
        raise ModelError(
            f"{path}: its decoder is built of residual blocks of type 2, for which VitsModel has no place. Convert a "
            "voice with type 1."
        )
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
        **{ours: args[theirs] for theirs, ours in names.items() if theirs in args},
        **dropout,
        "upsample_rates": args["upsample_rates_decoder"],
        "resblock_dilation_sizes": args["resblock_dilation_sizes_decoder"],
        "speaking_rate": 1 / args.get("length_scale", 1.0),
    }


def _original_name_of_coqui(name: str) -> str:
    if name.startswith("flow."):  # the original's list of flows holds a flip after each
        name = re.sub(r"(?<=^flow\.flows\.)\d+", lambda index: str(2 * int(index.group())), name)
    if name.startswith("duration_predictor."):
        name = re.sub(r"(?<=flows\.)\d+", lambda index: str(max(0, 2 * int(index.group()) - 1)), name)
        name = re.sub(r"\.translation$", ".m", re.sub(r"\.log_scale$", ".logs", name))
    for theirs, originals in (
        ("text_encoder.", "enc_p."),
        ("posterior_encoder.", "enc_q."),
        ("duration_predictor.", "dp."),
        ("waveform_decoder.cond_layer.", "dec.cond."),
        ("waveform_decoder.", "dec."),
        ("disc.nets.", "discriminators."),
    ):
        if name.startswith(theirs):
            return originals + name.removeprefix(theirs)
    return name


def _symbols_of_coqui(config: Mapping[str, Any], path: Path, vocab: Path | None) -> tuple[list[str], int]:
    """Symbols by id, and the blank's id, as Coqui TTS 0.22 builds them from its configuration."""
    said = config.get("characters") or {}
    if vocab:
        symbols, blank = symbols_from(vocab), said.get("blank") or _COQUIS_BLANK
        return symbols, symbols.index(blank) if blank in symbols else 0
    kind = str(said.get("characters_class")).rpartition(".")[2]
    letters, marks = said.get("characters") or "", list(said.get("punctuations") or "")
    if kind == "VitsCharacters":
        symbols = [said["pad"], *marks, *letters, *(said.get("phonemes") or ""), _COQUIS_BLANK]
        return symbols, len(symbols) - 1
    if kind not in ("Graphemes", "IPAPhonemes"):
        raise ModelError(
            f"{path}: characters_class {kind}: its symbols are not known here. Give them by --vocab: one a line in the "
            f"order of their ids, the blank as {_COQUIS_BLANK}."
        )
    letters = said.get("phonemes") or letters if kind == "IPAPhonemes" else letters
    middle = list(dict.fromkeys(letters)) if said.get("is_unique", True) else list(letters)
    middle = sorted(middle) if said.get("is_sorted", True) else middle
    special = [said[name] for name in ("pad", "eos", "bos", "blank") if said.get(name)]
    symbols = [*special, *middle, *marks]
    return symbols, symbols.index(said["blank"]) if said.get("blank") else 0


def _speakers_of_coqui(checkpoint: Path) -> list[str]:
    for name in ("speaker_ids.json", "speakers.json", "speakers.pth"):
        path = checkpoint.with_name(name)
        if path.is_file():
            ids = safe_pickle.load(path) if path.suffix == ".pth" else read_json(path, "the speakers' names")
            return _by_id(ids)
    return []
