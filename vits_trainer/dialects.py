"""Voices as other trainers keep them, in the words of original VITS: weights, sizes, symbols.

Layouts as their authors publish them: jaywalnut310/vits (``train.py``, ``utils.py``), the MMS-TTS of
facebookresearch/fairseq (the same, with vocab.txt), coqui-ai/TTS (``TTS/tts/models/vits.py``), rhasspy/piper
(``vits/lightning.py``).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vits_trainer import pickles
from vits_trainer.conversion import named_as_original
from vits_trainer.errors import ModelError
from vits_trainer.languages import espeak_name

_COQUIS_BLANK = "<BLNK>"
_MOST_SYMBOLS = 1 << 20
"""Far beyond any voice's embedding."""


@dataclass
class Parts:
    """A voice taken apart."""

    weights: dict[str, Tensor]
    """The generator's, by the original's names."""
    judges: dict[str, Tensor]
    """The discriminators', likewise; empty where there are none."""
    stated: dict[str, Any]
    """What its configuration says, by the names of ``VitsConfig``."""
    symbols: list[str]
    """By id; the first is the blank."""
    tokenizing: dict[str, Any] = field(default_factory=dict)
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


def original_parts(content: Mapping[str, Any], checkpoint: Path, config_file: Path | None, vocab: Path | None) -> Parts:
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
    return Parts(
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


def coqui_parts(content: Mapping[str, Any], checkpoint: Path, config_file: Path | None, vocab: Path | None) -> Parts:
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
    return Parts(
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
            ids = pickles.load(path) if path.suffix == ".pth" else read_json(path, "the speakers' names")
            return _by_id(ids)
    return []


def _by_id(ids: object) -> list[str]:
    """Names in the order of their ids; none where these are not 0, 1, 2 ..."""
    if not isinstance(ids, dict) or sorted(map(str, ids.values())) != sorted(map(str, range(len(ids)))):
        return []
    return sorted(ids, key=lambda name: int(ids[name]))


def piper_parts(content: Mapping[str, Any], checkpoint: Path, config_file: Path | None, vocab: Path | None) -> Parts:
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
    return Parts(
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
