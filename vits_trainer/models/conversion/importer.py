"""Voices of other trainers, brought into training form: found out, sized by their own weights, checked, filled."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import VitsConfig, VitsModel, VitsTokenizer

from vits_trainer.models import pretrained, pretrained_discriminator
from vits_trainer.models.conversion.coqui import coqui_parts
from vits_trainer.models.conversion.layout import ForeignCheckpoint
from vits_trainer.models.conversion.original import original_parts
from vits_trainer.models.conversion.piper import piper_parts
from vits_trainer.models.discriminator import Discriminator
from vits_trainer.models.parameter_names import from_original_generator, has_stochastic_durations
from vits_trainer.text.tokenizer import load_tokenizer, tokenizer_from_symbols
from vits_trainer.utils import safe_pickle
from vits_trainer.utils.errors import ModelError
from vits_trainer.utils.finite_weights import require_finite, weights_of

_READERS = {"original": original_parts, "coqui": coqui_parts, "piper": piper_parts}
_SIGNS = {"original": "enc_p.", "coqui": "text_encoder.", "piper": "model_g."}
"""How names of the weights begin."""
_MISUNDERSTOOD = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, StrictDataclassError)
"""What comes of a configuration whose entries are of other kinds than its trainer writes."""
_USUAL = ("G_*.pth", "*.ckpt", "model_file.pth", "best_model*.pth", "checkpoint_*.pth")


@dataclass(frozen=True)
class ImportedVoice:
    """A voice in this package's form, and what came with it."""

    model: VitsModel
    """In training form."""
    tokenizer: VitsTokenizer
    discriminator: Discriminator | None
    kind: str
    """``hf``, ``original``, ``coqui`` or ``piper``."""
    notes: list[str] = field(default_factory=list)
    """What is lost or must be known, for people."""


def import_voice(
    source: str,
    kind: str = "auto",
    config_file: Path | None = None,
    vocab: Path | None = None,
    discriminator: str | None = None,
) -> ImportedVoice:
    """Reads a voice from wherever it was trained.

    Args:
        source: a checkpoint, a folder with one, or a voice in Hugging Face form (a folder or Hub name).
        kind: whose layout it has; ``auto`` finds out.
        config_file: its configuration (None = config.json beside it).
        vocab: its symbols, where its own files do not say (None = vocab.txt or vocab.json beside it).
        discriminator: what ``read_discriminator`` reads (None = what lies beside it or inside).

    Raises:
        ModelError: it cannot be read, is of another kind, or something does not fit, which is named.
    """
    path = _checkpoint_in(Path(source), kind)
    if path is None:
        if kind not in ("auto", "hf"):
            raise ModelError(f"{source}: no checkpoint of {kind} lies there. Name the file itself.")
        return _hugging_face(source, discriminator)
    content = safe_pickle.load(path)
    weights = content.get("state_dict", content.get("model")) if isinstance(content, dict) else None
    if not isinstance(weights, Mapping) or not all(isinstance(name, str) for name in weights):
        raise ModelError(
            f"{path} holds neither model nor state_dict with weights by name: it is no checkpoint of a voice."
        )
    found = [name for name, sign in _SIGNS.items() if any(key.startswith(sign) for key in weights)]
    if not found or kind not in ("auto", found[0]):
        raise ModelError(
            f"{path}: its weights ({', '.join(sorted(map(str, weights))[:3])} ...) are not those of a voice of "
            f"{' or '.join(_SIGNS) if kind == 'auto' else kind}. Name the generator's checkpoint (G_*.pth, "
            "model_file.pth or *.ckpt)."
        )
    try:
        parts = _READERS[found[0]](content, path, config_file, vocab)
    except _MISUNDERSTOOD as error:
        raise _not_understood(path, config_file, error) from error
    if discriminator is None and not parts.discriminator_weights and found[0] == "original":
        beside = path.with_name(path.name.replace("G_", "D_", 1))
        discriminator = str(beside) if beside != path and beside.is_file() else None
    return _assembled(parts, path, found[0], config_file, discriminator)


def _not_understood(path: Path, config_file: Path | None, error: Exception) -> ModelError:
    return ModelError(
        f"{config_file or path.with_name('config.json')}, or what {path} says of itself, is not as its trainer writes "
        f"it ({type(error).__name__}: {' '.join(str(error).split())[:200]}). Give the files of one training."
    )


def _checkpoint_in(source: Path, kind: str) -> Path | None:
    """The file itself, or the newest of a folder; None where the source is no pickle."""
    if source.is_file():
        return None if source.suffix == ".safetensors" else source
    if kind == "hf" or not source.is_dir() or (source / "model.safetensors").is_file():
        return None
    found = [path for pattern in _USUAL for path in source.glob(pattern)]
    return max(found, key=lambda path: (_number(path), path.name), default=None)


def _number(path: Path) -> int:
    return max((int(digits) for digits in re.findall(r"\d+", path.stem)), default=-1)


def _hugging_face(source: str, discriminator: str | None) -> ImportedVoice:
    folder = str(Path(source).parent) if source.endswith(".safetensors") else source
    judges = None
    model = pretrained.load_model(folder)
    if discriminator is not None or pretrained_discriminator.has_discriminator(folder):
        judges = pretrained_discriminator.read_discriminator(discriminator or folder)
    return ImportedVoice(model, load_tokenizer(folder), judges, "hf")


def _assembled(
    parts: ForeignCheckpoint, path: Path, kind: str, config_file: Path | None, discriminator: str | None
) -> ImportedVoice:
    try:
        config = infer_config(parts.weights, parts.config_values)
        model = pretrained.with_weight_norm(VitsModel(config))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except _MISUNDERSTOOD as error:
        raise _not_understood(path, config_file, error) from error
    try:
        model.load_state_dict(from_original_generator(parts.weights, model.state_dict()))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    require_finite(weights_of(model), path, "Take an earlier checkpoint.")
    if len(parts.symbols) > config.vocab_size:
        raise ModelError(
            f"{path}: there are {len(parts.symbols)} symbols, and its embedding has {config.vocab_size}: these are "
            "another voice's. Give its own by --vocab."
        )
    notes = list(parts.notes)
    if len(parts.symbols) < config.vocab_size:
        notes.append(f"{config.vocab_size - len(parts.symbols)} of its {config.vocab_size} embeddings have no symbol")
    if not any(name.endswith("dec.ups.0.weight_g") for name in parts.weights):
        notes.append(
            "its weight norm was folded, and was split again: it speaks as before, and learns a little otherwise"
        )
    if discriminator is not None:
        judges: Discriminator | None = pretrained_discriminator.read_discriminator(discriminator)
    elif parts.discriminator_weights:
        judges = pretrained_discriminator.discriminator_from_original(
            parts.discriminator_weights, str(path), parts.periods
        )
    else:
        judges = None
    return ImportedVoice(
        model.eval(), tokenizer_from_symbols(parts.symbols, **parts.tokenizer_options), judges, kind, notes
    )


def infer_config(weights: Mapping[str, Tensor], stated: Mapping[str, Any]) -> VitsConfig:
    """A voice's configuration: sizes from the shapes of its own weights, the rest as stated.

    Args:
        weights: by the original's names.
        stated: by the names of ``VitsConfig``, with ``hop`` in samples; what it says of sizes must be so.

    Raises:
        ModelError: a weight is missing, or what is stated is not what the weights are; each is named.
    """
    sizes = _sizes(weights)
    hop = 1
    for rate in stated["upsample_rates"]:
        hop *= rate
    wrong = [
        f"{name} is {_plain(stated[name])} by the configuration and {_plain(size)} by the weights"
        for name, size in sizes.items()
        if name in stated and _plain(stated[name]) != _plain(size)
    ]
    if hop != stated["hop"]:
        wrong.append(f"upsample_rates make {hop} samples of a frame, and the hop is {stated['hop']}")
    if len(stated.get("speakers", ())) > sizes["num_speakers"]:
        wrong.append(f"there are {len(stated['speakers'])} names of speakers for {sizes['num_speakers']}")
    if not stated["sampling_rate"] > 0:
        wrong.append(f"the sampling rate is {stated['sampling_rate']}")
    if wrong:
        raise ModelError(f"The configuration is of another voice: {'; '.join(wrong)}. Name the right --config_file.")
    rest = {name: value for name, value in stated.items() if name not in sizes and name not in ("hop", "speakers")}
    config = VitsConfig(**sizes, **rest, layerdrop=0.0)
    if stated.get("speakers"):
        config.speakers = list(stated["speakers"])
    return config


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


class _Shapes:
    """Shapes by the original's names, of a layer with weight norm or without."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights

    def of(self, layer: str, rank: int = 3) -> tuple[int, ...]:
        for name in (layer, f"{layer}.weight", f"{layer}.weight_v"):
            if name in self.weights:
                shape = tuple(self.weights[name].shape)
                if len(shape) != rank or 0 in shape:
                    raise ModelError(f"{name} has shape {shape}, which no voice's has.")
                return shape
        raise ModelError(f"{layer}.weight is missing: these are not all of a voice's weights.")

    def count(self, pattern: str) -> int:
        """How many numbers stand in the place of the pattern's group: one at least."""
        found = {match[1] for match in map(re.compile(pattern).match, self.weights) if match}
        if not found:
            layer = pattern.replace(r"(\d+)", "0").replace("\\", "").rstrip(".")
            raise ModelError(f"{layer}.weight is missing: these are not all of a voice's weights.")
        return len(found)


def _sizes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    shapes = _Shapes(weights)
    vocab_size, hidden_size = shapes.of("enc_p.emb", 2)
    _, band, head_width = shapes.of("enc_p.encoder.attn_layers.0.emb_rel_k")
    ffn_dim, _, ffn_kernel_size = shapes.of("enc_p.encoder.ffn_layers.0.conv_1")
    upsamplings = shapes.count(r"dec\.ups\.(\d+)\.")
    blocks = shapes.count(r"dec\.resblocks\.(\d+)\.convs1\.") // upsamplings
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
        "spectrogram_bins": shapes.of("enc_q.pre")[1],
        "posterior_encoder_num_wavenet_layers": shapes.count(r"enc_q\.enc\.in_layers\.(\d+)\."),
        "prior_encoder_num_flows": shapes.count(r"flow\.flows\.(\d+)\.pre\."),
        "prior_encoder_num_wavenet_layers": shapes.count(r"flow\.flows\.0\.enc\.in_layers\.(\d+)\."),
        "wavenet_kernel_size": shapes.of("enc_q.enc.in_layers.0")[2],
        "upsample_initial_channel": shapes.of("dec.conv_pre")[0],
        "upsample_kernel_sizes": [shapes.of(f"dec.ups.{i}")[2] for i in range(upsamplings)],
        "resblock_kernel_sizes": [shapes.of(f"dec.resblocks.{i}.convs1.0")[2] for i in range(blocks)],
        "num_speakers": speakers[0],
        "speaker_embedding_size": speakers[1],
        **_sizes_of_durations(weights, shapes),
    }


def _sizes_of_durations(weights: Mapping[str, Tensor], shapes: _Shapes) -> dict[str, Any]:
    if not has_stochastic_durations(weights):
        width, _, kernel_size = shapes.of("dp.conv_1")
        return {
            "use_stochastic_duration_prediction": False,
            "duration_predictor_filter_channels": width,
            "duration_predictor_kernel_size": kernel_size,
        }
    return {
        "use_stochastic_duration_prediction": True,
        "duration_predictor_num_flows": shapes.count(r"dp\.flows\.(\d+)\.pre\."),
        "duration_predictor_kernel_size": shapes.of("dp.convs.convs_sep.0")[2],
        "duration_predictor_flow_bins": (shapes.of("dp.flows.1.proj")[0] + 1) // 3,
        "depth_separable_num_layers": shapes.count(r"dp\.convs\.convs_sep\.(\d+)\."),
    }
