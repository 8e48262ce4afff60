"""Export to one ONNX file that Piper, and thereby Home Assistant, and sherpa-onnx play.

Piper reads ``NAME.onnx.json`` next to it (OHF-Voice/piper1-gpl, ``config.py``), sherpa-onnx ``tokens.txt`` and the
file's metadata (k2-fsa/sherpa-onnx, ``offline-tts-vits-model.cc``). Home Assistant's server finds a voice by the
file's name, and shows ``dataset`` under which it looks for it (wyoming-piper, ``__main__.py``): both are the same here.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import VitsModel

from vits_trainer.models.conversion.onnx import (
    OPSET,
    InferenceModule,
    OnnxComparison,
    compare_speech,
    export_graph,
    save_graph,
)
from vits_trainer.models.conversion.onnx_packages import open_session
from vits_trainer.models.conversion.player_symbols import DROPPED, PlayerSymbols, player_symbols
from vits_trainer.models.pretrained import audio_spec, inference_form, speaker_names
from vits_trainer.models.type2_decoder import has_type2_blocks
from vits_trainer.text.languages import espeak_name
from vits_trainer.text.tokenizer import VoiceTokenizer

_INPUTS = ("input", "input_lengths", "scales", "sid")
_MARKS = "_^$"
"""Piper's blank, start and end of a sentence."""


class PlayerModule(nn.Module):
    """Inference with the inputs of a Piper voice."""

    def __init__(self, model: VitsModel) -> None:
        super().__init__()
        self.voice = InferenceModule(model)

    def forward(
        self,
        tokens: Tensor,
        token_lengths: Tensor,  # noqa: ARG002 - players send it
        scales: Tensor,
        speaker_id: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns speech, (1, 1, T) samples, and the duration of each token in frames, (1, S).

        Args:
            tokens: (1, S) ids.
            token_lengths: (1,).
            scales: (3,) noise scale, length scale, noise scale of the durations.
            speaker_id: (1,) for multi-speaker voices.
        """
        noise, length, noise_duration = scales.unbind()
        speech, durations = self.voice(tokens, noise, length, noise_duration, speaker_id)
        return speech[:, None], durations


def locale_code(language: str) -> str:
    """Returns a language as players name it: en_US for eng, en-us and en_US, ku for kmr-script_latin."""
    base, _, region = espeak_name(language.replace("_", "-") if len(language) == 5 else language).partition("-")
    return f"{base}_{region.upper()}" if len(region) == 2 else base


def file_stem(model: VitsModel, language: str, name: str) -> str:
    """Returns the name of a voice's files, as Piper's: language, name and quality (ku-silav-medium)."""
    plain = re.sub(r"[^\w]+", "_", name.lower()).strip("_") or "voice"
    return f"{locale_code(language)}-{plain}-{_quality(model)}"


def _quality(model: VitsModel) -> str:
    if not has_type2_blocks(model.config):
        return "high"
    return "medium" if model.config.sampling_rate > 16000 else "low"


def export_player_file(
    model: VitsModel, tokenizer: VoiceTokenizer, language: str, path: Path, stores_half: bool = False
) -> None:
    """Writes the .onnx file, which is the same for both players.

    Args:
        model: in training form, or rounded to float16.
        tokenizer: of the voice.
        language: of the voice.
        path: output file.
        stores_half: store weights as float16 that have its precision.

    Raises:
        InstallationError: packages are missing.
    """
    config, symbols = model.config, player_symbols(tokenizer, model.config.vocab_size)
    example: dict[str, Tensor] = {
        "tokens": torch.arange(24)[None] % config.vocab_size,
        "token_lengths": torch.tensor([24]),
        "scales": torch.tensor([0.667, 1.0, 0.8]),
    }
    if config.num_speakers > 1:
        example["speaker_id"] = torch.zeros(1, dtype=torch.long)
    names = ("tokens" if symbols.needs_graph else "input", *_INPUTS[1 : len(example)])
    file = export_graph(PlayerModule(inference_form(model)).eval(), example, names, ("output", "durations"), path)
    if symbols.needs_graph:
        file = _with_merges(file, symbols)
    save_graph(file, _sherpa_metadata(model, tokenizer, language), path, stores_half)


def write_piper_settings(model: VitsModel, tokenizer: VoiceTokenizer, language: str, path: Path) -> None:
    """Writes ``NAME.onnx.json`` next to ``path``, NAME.onnx, for Piper and Home Assistant."""
    config, code = model.config, locale_code(language)
    symbols = player_symbols(tokenizer, config.vocab_size)
    family, _, region = code.partition("_")
    ids = {symbol: [index] for symbol, index in symbols.ids.items() if symbol not in _MARKS}
    blank = {"_": [0] if tokenizer.add_blank else [], "^": [], "$": []}
    settings = {
        "audio": {"sample_rate": config.sampling_rate, "quality": _quality(model)},
        "espeak": {"voice": espeak_name(language)},
        "phoneme_type": "espeak" if tokenizer.phonemize else "text",
        "inference": {
            "noise_scale": config.noise_scale,
            "length_scale": 1 / config.speaking_rate,
            "noise_w": config.noise_scale_duration,
        },
        "num_symbols": config.vocab_size,
        "num_speakers": max(1, config.num_speakers),
        "speaker_id_map": {name: index for index, name in enumerate(speaker_names(config))},
        "phoneme_map": {},
        "phoneme_id_map": blank | ids,
        "hop_length": audio_spec(config).hop,
        "piper_version": "1.0.0",
        "language": {"code": code, "family": family, "region": region},
        "dataset": path.stem,
    }
    content = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    path.with_name(f"{path.name}.json").write_text(content, encoding="utf-8")


def write_sherpa_tokens(model: VitsModel, tokenizer: VoiceTokenizer, path: Path) -> None:
    """Writes tokens.txt for sherpa-onnx: a symbol and its id per line."""
    symbols = player_symbols(tokenizer, model.config.vocab_size)
    ids = {symbol: index for symbol, index in symbols.ids.items() if symbol == " " or not symbol.isspace()}
    if tokenizer.phonemize and symbols.sentence_id is not None:  # it requires these
        ids |= dict.fromkeys(_MARKS, symbols.sentence_id)
    path.write_text("".join(f"{symbol} {index}\n" for symbol, index in ids.items()), encoding="utf-8")


def player_notes(tokenizer: VoiceTokenizer, player: str) -> list[str]:
    """Returns what ``player`` cannot do that this package does with texts."""
    notes = []
    if tokenizer.is_uroman:
        notes.append("players do not romanize: give them texts in Latin letters (uroman)")
    if not tokenizer.phonemize:
        if not any(symbol.isdecimal() for symbol in tokenizer.encoder):
            notes.append("players do not write out numbers: give them texts without digits")
        marks = [mark for mark in _MARKS if tokenizer.encoder.get(mark, 0) != 0]
        if marks and player == "piper":
            notes.append(f"Piper uses {' '.join(marks)} itself: these symbols of the voice cannot be spoken there")
    elif player == "sherpa":
        notes.append("sherpa-onnx 2 has no espeak-ng: its caller gives phoneme_codepoints")
    return notes


def compare_player_file(model: VitsModel, path: Path) -> OnnxComparison:
    """Compares a file with PyTorch, as :func:`~vits_trainer.models.conversion.onnx.compare_onnx`."""
    session = open_session(path)
    speaker = {"sid": np.array([0])} if model.config.num_speakers > 1 else {}

    def by_onnx(ids: NDArray[np.int64]) -> NDArray[np.float32]:
        inputs: dict[str, Any] = {"input": ids[None], "input_lengths": np.array([len(ids)]), **speaker}
        speech: NDArray[np.float32] = session.run(
            ["output"], {**inputs, "scales": np.array([0.0, 1.0, 0.0], np.float32)}
        )[0].reshape(-1)
        return speech

    return compare_speech(model, path, by_onnx)


def _sherpa_metadata(model: VitsModel, tokenizer: VoiceTokenizer, language: str) -> dict[str, str]:
    values: dict[str, str | int] = {
        "model_type": "vits",
        "comment": "piper",  # selects the inputs of Piper
        "language": locale_code(language),
        "voice": espeak_name(language),
        "version": 1,
        "add_blank": int(tokenizer.add_blank),
        "use_eos_bos": 0,
        **dict.fromkeys(("blank_id", "bos_id", "eos_id", "pad_id"), 0),
        "has_espeak": int(tokenizer.phonemize),
        "frontend": "" if tokenizer.phonemize else "characters",
        "n_speakers": max(1, model.config.num_speakers),
        "sample_rate": model.config.sampling_rate,
        "punctuation": "",
    }
    return {name: str(value) for name, value in values.items()}


def _with_merges(file: Any, symbols: PlayerSymbols) -> Any:
    """Returns the file with a graph before it that turns ids of code points into token ids of the voice."""
    import onnx  # noqa: PLC0415 - optional

    before = onnx.parser.parse_model(_merging_text(symbols.passes, symbols.add_blank, file.ir_version))
    for name, values in _merging_tables(symbols).items():
        before.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return onnx.compose.merge_models(before, file, io_map=[("merged", "tokens")], producer_name="vits_trainer")


def _merging_tables(symbols: PlayerSymbols) -> dict[str, NDArray[Any]]:
    marks = sorted({mark for _, mark in symbols.merges})
    sentinel, count, width = len(symbols.final_ids), len(symbols.final_ids) + 1, len(marks) + 1
    unheard = [index for index in (symbols.sentence_id, 0 if symbols.add_blank else None) if index is not None]
    tables: dict[str, NDArray[Any]] = {
        "is_heard": ~np.isin(np.arange(count), unheard),
        "final_ids": np.array([*symbols.final_ids, DROPPED]),
        "sentinel": np.array([sentinel]),
    }
    if symbols.merges:
        columns, table = np.zeros(count, np.int64), np.full((count, width), -1, np.int64)
        columns[marks] = np.arange(1, width)
        for (letter, mark), merged in symbols.merges.items():
            table[letter, columns[mark]] = merged
        tables |= {
            "columns": columns,
            "table": table.reshape(-1),
            "width": np.array(width),
            "last": np.array([np.iinfo(np.int64).max]),
        }
    return tables


_MERGE_ONCE = """
    tail_{i} = Slice (letters_{i}, one, last)
    next_{i} = Concat <axis = 0> (tail_{i}, zero)
    column_{i} = Gather (columns, next_{i})
    row_{i} = Mul (letters_{i}, width)
    index_{i} = Add (row_{i}, column_{i})
    merged_{i} = Gather (table, index_{i})
    merges_{i} = GreaterOrEqual (merged_{i}, zero)
    all_{i} = Where (merges_{i}, merged_{i}, letters_{i})
    earlier_{i} = Slice (merges_{i}, zero, minus_one)
    first_{i} = Equal (zero, one)
    is_mark_{i} = Concat <axis = 0> (first_{i}, earlier_{i})
    kept_{i} = Not (is_mark_{i})
    letters_{j} = Compress <axis = 0> (all_{i}, kept_{i})
"""
_ADD_BLANKS = """
    column = Unsqueeze (found, one)
    blank = Mul (column, zero)
    pairs = Concat <axis = 1> (column, blank)
    flat = Reshape (pairs, minus_one)
    tokens_1 = Concat <axis = 0> (zero, flat)
"""


def _merging_text(passes: int, add_blank: bool, ir_version: int) -> str:
    """Returns a graph in ONNX's textual form: drops blanks, merges each letter with the marks after it, adds blanks.

    A sentinel before the letters, which is dropped at the end, keeps all tensors non-empty.
    """
    merging = "".join(_MERGE_ONCE.format(i=number, j=number + 1) for number in range(passes))
    return f"""
<ir_version: {ir_version}, opset_import: ["" : {OPSET}]>
merging (int64[1, symbols] input) => (int64[1, found_tokens] merged)
<int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] minus_one = {{-1}}> {{
    ids = Reshape (input, minus_one)
    heard = Gather (is_heard, ids)
    spoken = Compress <axis = 0> (ids, heard)
    letters_0 = Concat <axis = 0> (sentinel, spoken)
    {merging}
    final = Gather (final_ids, letters_{passes})
    is_kept = GreaterOrEqual (final, zero)
    found = Compress <axis = 0> (final, is_kept)
    {_ADD_BLANKS if add_blank else "tokens_1 = Identity (found)"}
    merged = Unsqueeze (tokens_1, zero)
}}"""
