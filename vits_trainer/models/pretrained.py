"""Loading of voices for training, and export to ``transformers``."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import VitsConfig, VitsModel, VitsTokenizer
from transformers.utils import cached_file

from vits_trainer.config.framing import AudioSpec
from vits_trainer.models import parameter_names
from vits_trainer.models.discriminator import DISCRIMINATOR_FILE, Discriminator, save_discriminator
from vits_trainer.models.voice_versions import replace_voice
from vits_trainer.utils.errors import ModelError
from vits_trainer.utils.finite_weights import require_finite, weights_of

_DISCRIMINATOR_PREFIX = "discriminator."
"""Prefix of discriminator weights that finetune-hf-vits stores in model.safetensors with those of the voice."""
EMBEDDED_SPEAKER_SIZE = 256
"""Value used by VITS."""
_NONFINITE_REMEDY = "Use an earlier version of it, or train it again with a lower --learning_rate."
MAX_TOKEN_S = 2.0
"""Duration limit of a token in synthesis, in seconds: longer than any sound or pause of a sentence."""


def read_config(name_or_dir: str) -> VitsConfig:
    """Reads a voice's configuration without ``AutoConfig``, which asks whether to run code from the voice's directory.

    Raises:
        ModelError: the configuration is missing, unreadable or of another model type.
    """
    try:
        values, _ = VitsConfig.get_config_dict(name_or_dir)
        kind = values.get("model_type")
        if kind != VitsConfig.model_type:
            raise ModelError(f"{name_or_dir}: model_type is {kind}, not a VITS voice. Pass a VITS or MMS-TTS voice.")
        return VitsConfig.from_dict(values)
    except (OSError, ValueError) as error:
        raise _load_error(name_or_dir, error) from error


def _load_error(name_or_dir: str, error: Exception) -> ModelError:
    return ModelError(
        f"{name_or_dir}: cannot load a voice ({' '.join(str(error).split())[:300]}). Pass a local directory with "
        "config.json and model.safetensors, or a Hub name if the Hub is reachable."
    )


def load_model(name_or_dir: str, layerdrop: float = 0.0) -> VitsModel:
    """Loads a voice from a local directory or the Hub in training form: float32, decoder weight norm unfolded.

    The model is in eval mode, as returned by ``from_pretrained``; the trainer sets the mode. Also reads checkpoints of
    finetune-hf-vits, whose file includes discriminators (see :func:`load_or_create_discriminator`) and may have weight
    norm in all modules.

    Raises:
        ModelError: the voice is missing, unreadable or not a VITS model, or its weights do not match its configuration
            or are NaN or Inf.
    """
    model, unfit = _from_pretrained(name_or_dir, layerdrop)
    model = with_weight_norm(model)
    if unfit:
        weights = _load_weights(name_or_dir)
        if not any(name.startswith(_DISCRIMINATOR_PREFIX) or name.endswith("weight_g") for name in weights):
            raise _weights_do_not_match(name_or_dir, unfit)
        own = {
            parameter_names.discriminator_name(name): weight
            for name, weight in weights.items()
            if not name.startswith(_DISCRIMINATOR_PREFIX)
        }
        model.load_state_dict(parameter_names.match_state_dict(own, model.state_dict(), f"voice of {name_or_dir}"))
    require_finite(weights_of(model), name_or_dir, _NONFINITE_REMEDY)
    return model


def load_for_inference(name_or_dir: str) -> VitsModel:
    """Returns a voice from a local folder or the Hub as transformers loads it: float32, in eval mode.

    Raises:
        ModelError: it cannot be found or read, is no VITS model, or its weights do not match or are NaN or Inf.
    """
    model, unfit = _from_pretrained(name_or_dir)
    if unfit:
        raise _weights_do_not_match(name_or_dir, unfit)
    require_finite(weights_of(model), name_or_dir, _NONFINITE_REMEDY)
    return model.eval()


def _from_pretrained(name_or_dir: str, layerdrop: float = 0.0) -> tuple[VitsModel, dict[str, list[str]]]:
    """Returns the model, and the names of weights that are missing, unexpected or of another shape."""
    config = read_config(name_or_dir)
    config.layerdrop = layerdrop
    try:
        model, report = VitsModel.from_pretrained(
            name_or_dir,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported by name
            trust_remote_code=False,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _load_error(name_or_dir, error) from error
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    return model, {kind: sorted(map(str, report[kind])) for kind in kinds if report[kind]}


def _weights_do_not_match(name_or_dir: str, unfit: dict[str, list[str]]) -> ModelError:
    return ModelError(f"{name_or_dir}: weights do not match the configuration: {unfit}.")


def _load_weights(name_or_dir: str) -> dict[str, Tensor]:
    """Returns all weights of a voice's model.safetensors under their names in the file; empty without that file."""
    path = _weights_path(name_or_dir)
    return {name: weight.float() for name, weight in load_file(path).items()} if path else {}


def _weights_path(name_or_dir: str) -> str | None:
    """Returns the local path of a voice's model.safetensors, downloaded from the Hub if needed; None if missing."""
    try:
        path: str | None = cached_file(
            name_or_dir,
            "model.safetensors",
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except OSError:  # neither a directory nor a Hub name
        return None
    return path


def with_weight_norm(model: VitsModel) -> VitsModel:
    """Restores the decoder's weight norm, which is folded in Hugging Face checkpoints. Modifies ``model``."""
    model.decoder.apply_weight_norm()
    return model


def model_from_config(directory: Path) -> VitsModel:
    """Creates a voice in training form from the configuration in ``directory``; a checkpoint provides its weights."""
    return with_weight_norm(VitsModel(VitsConfig.from_pretrained(directory, trust_remote_code=False)))


@contextmanager
def clamp_token_durations(model: VitsModel) -> Iterator[None]:
    """Limits token durations to :data:`MAX_TOKEN_S` during synthesis in this context.

    Durations are exponentials: a diverged voice would generate hours of speech and exhaust memory.
    """
    spec = audio_spec(model.config)
    maximum = math.log(MAX_TOKEN_S * spec.sampling_rate / spec.hop)

    def cap(module: nn.Module, arguments: object, log_durations: Tensor) -> Tensor:  # noqa: ARG001 - hook signature
        return log_durations.nan_to_num(0.0).clamp(max=maximum)

    hook = model.duration_predictor.register_forward_hook(cap)
    try:
        yield
    finally:
        hook.remove()


def audio_spec(config: VitsConfig) -> AudioSpec:
    """Returns the framing implied by a voice's configuration."""
    hop = 1
    for rate in config.upsample_rates:
        hop *= rate
    n_fft = 2 * (config.spectrogram_bins - 1)
    return AudioSpec(sampling_rate=config.sampling_rate, n_fft=n_fft, window=n_fft, hop=hop)


def fold_weight_norm(model: VitsModel) -> VitsModel:
    """Returns a copy on the CPU with the decoder's weight norm folded, as in transformers' checkpoints.

    Not a deep copy: parametrized layers share a class with their copies, so folding one breaks the other.

    Raises:
        ModelError: a weight is NaN or Inf.
    """
    require_finite(weights_of(model), "The voice to export", _NONFINITE_REMEDY)
    with torch.device("meta"):
        exported = VitsModel(copy.deepcopy(model.config))
    state = {name: tensor for name, tensor in state_on_cpu(model).items() if name in exported.state_dict()}
    for name, module in model.decoder.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            state[f"decoder.{name}.weight"] = module.weight.detach().cpu().contiguous()
    exported.load_state_dict(state, assign=True)
    return exported.eval()


def export(
    model: VitsModel,
    tokenizer: VitsTokenizer,
    discriminator: Discriminator | None,
    directory: Path,
    keep_versions: int = 0,
) -> None:
    """Writes a voice for ``VitsModel.from_pretrained`` and ``pipeline("text-to-speech")``.

    Writes to a temporary sibling directory, reads it back, compares it, and then moves it to ``directory``.

    Args:
        model: in training form.
        tokenizer: tokenizer of the voice.
        discriminator: saved with the voice, so that it can be finetuned again.
        directory: locked by the caller; a voice in it is kept as a version.
        keep_versions: number of earlier versions to keep; 0 = all.

    Raises:
        ConfigError: ``directory`` contains something other than a voice.
        ModelError: a weight is NaN or Inf, or the written voice differs from the trained one.
    """
    exported = fold_weight_norm(model)
    if discriminator is not None:
        require_finite(weights_of(discriminator), "The discriminators to export", _NONFINITE_REMEDY)
    with replace_voice(directory, keep_versions) as temporary:
        # otherwise a voice loaded with legacy weight norm names (weight_g) would be saved with them
        exported.save_pretrained(temporary, save_original_format=False)
        tokenizer.save_pretrained(temporary)
        if discriminator is not None:
            save_discriminator(discriminator, temporary / DISCRIMINATOR_FILE)
        _compare(exported, temporary)


def _compare(model: VitsModel, directory: Path) -> None:
    loaded, report = VitsModel.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
    )
    wrong = [
        *map(str, report["missing_keys"]),
        *map(str, report["unexpected_keys"]),
        *map(str, report["mismatched_keys"]),
    ]
    expected = model.state_dict()
    wrong += [name for name, tensor in loaded.state_dict().items() if not torch.equal(tensor, expected[name])]
    if wrong:
        raise ModelError(f"{directory}: the exported voice differs from the trained one in {', '.join(wrong[:10])}.")


def speaker_names(config: VitsConfig) -> list[str]:
    """Returns speaker names in order of their ids, with the id for unnamed speakers; empty for a single speaker."""
    if config.num_speakers <= 1:
        return []
    names: list[str] = getattr(config, "speakers", None) or []
    return [*names, *map(str, range(len(names), config.num_speakers))]


def speaker_ids(config: VitsConfig, speakers: list[str]) -> dict[str, int] | None:
    """Returns the ids of the data's speakers (sorted names) in a voice; None for a single speaker.

    Ids are those stored with the voice, or else the indices of ``speakers``.

    Raises:
        ModelError: the voice does not have a speaker.
    """
    if config.num_speakers <= 1:
        return None
    names: list[str] = getattr(config, "speakers", None) or speakers
    unknown = sorted(set(speakers) - set(names))
    if unknown or len(names) > config.num_speakers:
        raise ModelError(
            f"The voice has {config.num_speakers} speakers, but not {', '.join(unknown[:5]) or 'all'} of the data. Add "
            "them with --extend_speakers true, exclude their clips with --only_speakers, or start from a voice that "
            "includes them."
        )
    return {name: index for index, name in enumerate(names)}


def state_on_cpu(module: nn.Module) -> dict[str, Tensor]:
    """Returns the module's parameters and buffers as contiguous CPU tensors."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
