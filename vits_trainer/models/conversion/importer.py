"""Imports voices of other programs: detects the layout, infers sizes from the weights, checks and loads them."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from msgspec import Meta
from torch import Tensor
from transformers import VitsConfig, VitsModel, VitsTokenizer

from vits_trainer.models import pretrained, pretrained_discriminator
from vits_trainer.models.conversion import coqui, original, piper, piper_onnx
from vits_trainer.models.conversion.layout import ForeignCheckpoint, config_path
from vits_trainer.models.discriminator import Discriminator
from vits_trainer.models.initialization import init_vits_weights
from vits_trainer.models.parameter_names import (
    from_original_generator,
    has_stochastic_durations,
    original_generator_name,
)
from vits_trainer.models.type2_decoder import has_type2_blocks
from vits_trainer.models.voice_config import voice_config
from vits_trainer.text.tokenizer import load_tokenizer, tokenizer_from_symbols
from vits_trainer.utils import safe_pickle
from vits_trainer.utils.errors import ModelError
from vits_trainer.utils.finite_weights import require_finite, weights_of
from vits_trainer.utils.records import check

LAYOUTS = (original.LAYOUT, coqui.LAYOUT, piper.LAYOUT)
"""Layouts that can be imported; the first whose weights are there is used."""
_CONFIG_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, StrictDataclassError)
"""Exceptions caused by configuration values of unexpected types."""
_CONFIG_REMEDY = "Pass the right --config_file."
_Rates = Annotated[list[Annotated[int, Meta(ge=1, le=1024)]], Meta(min_length=1, max_length=16)]
_CHECKPOINT_PATTERNS = ("G_*.pth", "*.ckpt", "model_file.pth", "best_model*.pth", "checkpoint_*.pth", "*.onnx")


@dataclass(frozen=True)
class ImportedVoice:
    """A voice in the form of this package, with its tokenizer, discriminators and notes."""

    model: VitsModel
    """In training form."""
    tokenizer: VitsTokenizer
    discriminator: Discriminator | None
    kind: str
    """``hf``, ``original``, ``coqui`` or ``piper``."""
    notes: list[str] = field(default_factory=list)
    """Notes for the user about lost or changed properties."""


def import_voice(
    source: str,
    kind: str = "auto",
    config_file: Path | None = None,
    vocab: Path | None = None,
    discriminator: str | None = None,
) -> ImportedVoice:
    """Imports a voice of any supported program.

    Args:
        source: a checkpoint, a directory with one, or a voice in Hugging Face form (directory or Hub name).
        kind: layout; ``auto`` detects it.
        config_file: configuration (None = config.json in the same directory).
        vocab: symbols, if the other files do not list them (None = vocab.txt or vocab.json in the same directory).
        discriminator: as for ``read_discriminator`` (None = those in the same directory or inside the checkpoint).

    Raises:
        ModelError: the voice cannot be read, has another layout, or does not match its configuration.
    """
    path = _checkpoint_in(Path(source), kind)
    if path is None:
        if kind not in ("auto", "hf"):
            raise ModelError(f"{source}: no {kind} checkpoint found. Pass the file itself.")
        return _hugging_face(source, discriminator)
    if path.suffix == ".onnx":
        return _piper_onnx(path, kind, config_file, vocab, discriminator)
    content = safe_pickle.load(path)
    weights = content.get("state_dict", content.get("model")) if isinstance(content, dict) else None
    if not isinstance(weights, Mapping) or not all(isinstance(name, str) for name in weights):
        raise ModelError(f"{path} is not a checkpoint of a voice: it has no weights by name under model or state_dict.")
    layout = next((one for one in LAYOUTS if any(key.startswith(one.weight_prefix) for key in weights)), None)
    if layout is None or kind not in ("auto", layout.name):
        expected = " or ".join(one.name for one in LAYOUTS) if kind == "auto" else kind
        raise ModelError(
            f"{path}: the weights ({', '.join(sorted(map(str, weights))[:3])} ...) are not those of a voice in "
            f"{expected} layout. Pass the generator's checkpoint (G_*.pth, model_file.pth or *.ckpt)."
        )
    try:
        parts = layout.read(content, path, config_file, vocab)
    except _CONFIG_ERRORS as error:
        raise _config_error(path, config_file, error) from error
    if discriminator is None and not parts.discriminator_weights and layout.name == "original":
        sibling = path.with_name(path.name.replace("G_", "D_", 1))
        discriminator = str(sibling) if sibling != path and sibling.is_file() else None
    return _build_voice(parts, path, layout.name, config_file, discriminator)


def _piper_onnx(
    path: Path, kind: str, config_file: Path | None, vocab: Path | None, discriminator: str | None
) -> ImportedVoice:
    if kind not in ("auto", piper.LAYOUT.name):
        raise ModelError(f"{path}: only Piper's .onnx files can be read. Pass the checkpoint of the {kind} voice.")
    try:
        parts = piper_onnx.read_piper_onnx(path, config_file, vocab)
    except _CONFIG_ERRORS as error:
        raise _config_error(path, config_file, error) from error
    voice = _build_voice(parts, path, piper.LAYOUT.name, config_file, discriminator)
    voice.notes.append(piper_onnx.compare_with_file(voice.model, path))
    return voice


def _config_error(path: Path, config_file: Path | None, error: Exception) -> ModelError:
    return ModelError(
        f"{config_path(path, config_file)} or {path} has unexpected configuration values "
        f"({type(error).__name__}: {' '.join(str(error).split())[:200]}). Pass the files of the same training run."
    )


def _checkpoint_in(source: Path, kind: str) -> Path | None:
    """Returns the file itself, or the newest checkpoint of a directory; None if the source has no pickle."""
    if source.is_file():
        return None if source.suffix == ".safetensors" else source
    if kind == "hf" or not source.is_dir() or (source / "model.safetensors").is_file():
        return None
    matches = [path for pattern in _CHECKPOINT_PATTERNS for path in source.glob(pattern)]
    return max(matches, key=lambda path: (_number(path), path.name), default=None)


def _number(path: Path) -> int:
    return max((int(digits) for digits in re.findall(r"\d+", path.stem)), default=-1)


def _hugging_face(source: str, discriminator: str | None) -> ImportedVoice:
    folder = str(Path(source).parent) if source.endswith(".safetensors") else source
    discriminators = None
    model = pretrained.load_model(folder)
    if discriminator is not None or pretrained_discriminator.has_discriminator(folder):
        discriminators = pretrained_discriminator.read_discriminator(discriminator or folder)
    return ImportedVoice(model, load_tokenizer(folder), discriminators, "hf")


def _build_voice(
    parts: ForeignCheckpoint, path: Path, kind: str, config_file: Path | None, discriminator: str | None
) -> ImportedVoice:
    try:
        config = infer_config(parts.weights, parts.config_values, config_path(path, config_file), parts.fresh)
        with torch.device("meta"):  # compares the shapes before it allocates memory
            expected = pretrained.untrained(config).state_dict()
        state = from_original_generator(
            parts.weights, {name: t for name, t in expected.items() if not _is_fresh(name, parts)}
        )
        model = _with_fresh_weights(config) if parts.fresh else pretrained.untrained(config)
        model.load_state_dict({**model.state_dict(), **state})
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except _CONFIG_ERRORS as error:
        raise _config_error(path, config_file, error) from error
    require_finite(weights_of(model), path, "Use an earlier checkpoint.")
    if len(parts.symbols) > config.vocab_size:
        raise ModelError(
            f"{path}: there are {len(parts.symbols)} symbols for {config.vocab_size} embeddings: these are the symbols "
            "of another voice. Pass the right ones by --vocab."
        )
    notes = list(parts.notes)
    if len(parts.symbols) < config.vocab_size:
        notes.append(f"{config.vocab_size - len(parts.symbols)} of its {config.vocab_size} embeddings have no symbol")
    if has_type2_blocks(config):
        notes.append("its residual blocks of type 2 are doubled for transformers, and stay of type 2 in training")
    if not any(name.endswith("dec.ups.0.weight_g") for name in parts.weights):
        notes.append("its folded weight norm was split again: output is unchanged, training differs slightly")
    if discriminator is not None:
        discriminators: Discriminator | None = pretrained_discriminator.read_discriminator(discriminator)
    elif parts.discriminator_weights:
        discriminators = pretrained_discriminator.discriminator_from_original(
            parts.discriminator_weights, str(path), parts.periods
        )
    else:
        discriminators = None
    return ImportedVoice(
        model.eval(), tokenizer_from_symbols(parts.symbols, **parts.tokenizer_options), discriminators, kind, notes
    )


def _is_fresh(name: str, parts: ForeignCheckpoint) -> bool:
    return bool(parts.fresh) and original_generator_name(name).startswith(parts.fresh)


def _with_fresh_weights(config: VitsConfig) -> VitsModel:
    """Returns a voice with VITS's initialisation, the same in each conversion."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = pretrained.untrained(config)
        init_vits_weights(model)
    return model


def infer_config(
    weights: Mapping[str, Tensor],
    stated: Mapping[str, Any],
    source: object = "the configuration",
    fresh: tuple[str, ...] = (),
) -> VitsConfig:
    """Infers a voice's configuration: sizes from the shapes of its weights, other values as stated.

    Args:
        weights: weights under the original's names.
        stated: values under the names of ``VitsConfig``, with ``hop`` in samples; sizes must match the weights.
        source: file of the stated values, for messages.
        fresh: prefixes of weights that are missing; ``stated`` then has their sizes.

    Raises:
        ModelError: a weight is missing, or stated sizes differ from those of the weights; lists each.
    """
    sizes = _sizes(weights, has_posterior="enc_q." not in fresh)
    # The product of rates that are not checked yet may be astronomical.
    rates = check(stated["upsample_rates"], f"{source}: upsample_rates", _Rates, ModelError, _CONFIG_REMEDY)
    hop = math.prod(rates)
    wrong = [
        f"{name} is {_as_list(stated[name])} in the configuration but {_as_list(size)} in the weights"
        for name, size in sizes.items()
        if name in stated and _as_list(stated[name]) != _as_list(size)
    ]
    if hop != stated["hop"]:
        wrong.append(f"upsample_rates give {hop} samples per frame, but the hop is {stated['hop']}")
    if len(stated.get("speakers", ())) > sizes["num_speakers"]:
        wrong.append(f"there are {len(stated['speakers'])} speaker names for {sizes['num_speakers']} speakers")
    if not stated["sampling_rate"] > 0:
        wrong.append(f"the sampling rate is {stated['sampling_rate']}")
    if wrong:
        raise ModelError(
            f"The configuration is that of another voice: {'; '.join(wrong)}. Pass the right --config_file."
        )
    rest = {name: value for name, value in stated.items() if name not in sizes and name not in ("hop", "speakers")}
    values = {**sizes, **rest, "layerdrop": 0.0, "speakers": list(stated.get("speakers", ())) or None}
    if sizes["resblock_type"] == 2:
        values["upsample_initial_channel"] *= 2  # that of the doubled decoder
    return voice_config(values, source, _CONFIG_REMEDY)


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


class _Shapes:
    """Shapes under the original's names, of layers with or without weight norm."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights

    def of(self, layer: str, rank: int = 3) -> tuple[int, ...]:
        for name in (layer, f"{layer}.weight", f"{layer}.weight_v"):
            if name in self.weights:
                shape = tuple(self.weights[name].shape)
                if len(shape) != rank or 0 in shape:
                    raise ModelError(f"{name} has shape {shape}, expected {rank} non-empty dimensions.")
                return shape
        raise ModelError(f"{layer}.weight is missing: the weights of the voice are incomplete.")

    def count(self, pattern: str) -> int:
        """Counts the distinct indices that match the group of a pattern; at least one."""
        return len(self.indices(pattern))

    def indices(self, pattern: str) -> set[int]:
        """Returns the distinct indices that match the group of a pattern; at least one."""
        matches = {int(match[1]) for match in map(re.compile(pattern).match, self.weights) if match}
        if not matches:
            layer = pattern.replace(r"(\d+)", "0").replace("\\", "").rstrip(".")
            raise ModelError(f"{layer}.weight is missing: the weights of the voice are incomplete.")
        return matches


def _sizes(weights: Mapping[str, Tensor], has_posterior: bool) -> dict[str, Any]:
    shapes = _Shapes(weights)
    vocab_size, hidden_size = shapes.of("enc_p.emb", 2)
    _, band, head_width = shapes.of("enc_p.encoder.attn_layers.0.emb_rel_k")
    ffn_dim, _, ffn_kernel_size = shapes.of("enc_p.encoder.ffn_layers.0.conv_1")
    upsamplings = shapes.count(r"dec\.ups\.(\d+)\.")
    blocks = shapes.count(r"dec\.resblocks\.(\d+)\.convs1?\.") // upsamplings
    resblock_type = 1 if any(".convs1." in name for name in weights) else 2
    convs = "convs1" if resblock_type == 1 else "convs"
    speakers = shapes.of("emb_g", 2) if "emb_g.weight" in weights else (1, 0)
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "window_size": band // 2,
        "num_attention_heads": hidden_size // head_width,
        "num_hidden_layers": shapes.count(r"enc_p\.encoder\.ffn_layers\.(\d+)\."),
        "ffn_dim": ffn_dim,
        "ffn_kernel_size": ffn_kernel_size,
        "flow_size": shapes.of("enc_p.proj")[0] // 2,
        "prior_encoder_num_flows": shapes.count(r"flow\.flows\.(\d+)\.pre\."),
        "prior_encoder_num_wavenet_layers": shapes.count(r"flow\.flows\.0\.enc\.in_layers\.(\d+)\."),
        "wavenet_kernel_size": shapes.of("flow.flows.0.enc.in_layers.0")[2],
        "resblock_type": resblock_type,
        "upsample_initial_channel": shapes.of("dec.conv_pre")[0],
        "upsample_kernel_sizes": [shapes.of(f"dec.ups.{i}")[2] for i in range(upsamplings)],
        "resblock_kernel_sizes": [shapes.of(f"dec.resblocks.{i}.{convs}.0")[2] for i in range(blocks)],
        "num_speakers": speakers[0],
        "speaker_embedding_size": speakers[1],
        **_duration_predictor_sizes(weights, shapes),
        **(_posterior_encoder_sizes(shapes) if has_posterior else {}),
    }


def _posterior_encoder_sizes(shapes: _Shapes) -> dict[str, Any]:
    return {
        "spectrogram_bins": shapes.of("enc_q.pre")[1],
        "posterior_encoder_num_wavenet_layers": shapes.count(r"enc_q\.enc\.in_layers\.(\d+)\."),
    }


def _duration_predictor_sizes(weights: Mapping[str, Tensor], shapes: _Shapes) -> dict[str, Any]:
    if not has_stochastic_durations(weights):
        width, _, kernel_size = shapes.of("dp.conv_1")
        return {
            "use_stochastic_duration_prediction": False,
            "duration_predictor_filter_channels": width,
            "duration_predictor_kernel_size": kernel_size,
        }
    last = max(shapes.indices(r"dp\.flows\.(\d+)\.pre\."))  # the first flow may be missing
    return {
        "use_stochastic_duration_prediction": True,
        "duration_predictor_num_flows": (last + 1) // 2,
        "duration_predictor_kernel_size": shapes.of("dp.convs.convs_sep.0")[2],
        "duration_predictor_flow_bins": (shapes.of(f"dp.flows.{last}.proj")[0] + 1) // 3,
        "depth_separable_num_layers": shapes.count(r"dp\.convs\.convs_sep\.(\d+)\."),
    }
