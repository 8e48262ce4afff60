"""Loading of voices for training, and export to ``transformers``."""

import copy
import math
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import VitsConfig, VitsModel, VitsTokenizer

from vits_trainer.config.framing import AudioSpec
from vits_trainer.models import parameter_names
from vits_trainer.models.discriminator import DISCRIMINATOR_FILE, Discriminator, save_discriminator
from vits_trainer.models.type2_decoder import Type2Decoder, doubled_weights, has_type2_blocks, with_type2_decoder
from vits_trainer.models.voice_config import require_size, voice_config
from vits_trainer.models.voice_versions import replace_voice
from vits_trainer.utils import records
from vits_trainer.utils.errors import ConfigError, ModelError
from vits_trainer.utils.finite_weights import require_finite, weights_of
from vits_trainer.utils.logging import without_progress_bar
from vits_trainer.utils.strings import join_names, join_speakers
from vits_trainer.utils.voice_files import find_voice_file

_DISCRIMINATOR_PREFIX = "discriminator."
"""Prefix of discriminator weights that finetune-hf-vits stores in model.safetensors with those of the voice."""
EMBEDDED_SPEAKER_SIZE = 256
"""Value used by VITS."""
_NONFINITE_REMEDY = "Use an earlier version of it, or train it again with a lower --learning_rate."
_CONFIG_REMEDY = "Pass the config.json that the voice was trained with."
_COPY_AGAIN = "Download or copy the voice again."
LOADING_ERRORS = (OSError, ValueError, RuntimeError, AttributeError, TypeError, LookupError, SafetensorError)
"""Exceptions of transformers for other files of the folder that are damaged."""
MAX_TOKEN_S = 2.0
"""Duration limit of a token in synthesis, in seconds: longer than any sound or pause of a sentence."""


class _WeightsIndex(TypedDict):
    weight_map: dict[str, records.FileName]


def read_config(name_or_dir: str) -> VitsConfig:
    """Reads a voice's configuration without ``AutoConfig``, which asks whether to run code from the voice's directory.

    Raises:
        ModelError: the configuration is missing, unreadable or of another model type.
    """
    if Path(name_or_dir).is_file():
        raise ModelError(
            f"{name_or_dir} is a file, and a voice is a folder. A voice of another program (.onnx, .pth, .ckpt) "
            f"becomes one by: vits-trainer convert --input {shlex.quote(name_or_dir)}"
        )
    try:
        path = find_voice_file(name_or_dir, "config.json")
    except OSError as error:
        raise _load_error(name_or_dir, error) from error
    if path is None:
        raise _load_error(name_or_dir, FileNotFoundError("there is no config.json"))
    values = records.read_json(path, dict[str, Any], ModelError, _CONFIG_REMEDY, max_bytes=records.MAX_UNTYPED_BYTES)
    kind = values.get("model_type")
    if kind != VitsConfig.model_type:
        raise ModelError(f"{name_or_dir}: model_type is {kind}, not a VITS voice. Pass a VITS or MMS-TTS voice.")
    return voice_config(values, path, _CONFIG_REMEDY)


def _load_error(name_or_dir: str, error: Exception) -> ModelError:
    return ModelError(
        f"{name_or_dir}: cannot load a voice ({' '.join(str(error).split())[:300]}). Pass a local directory with "
        "config.json and model.safetensors, or a name on the Hub."
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
    if has_type2_blocks(model.config) and not unfit:
        try:
            model = with_type2_decoder(model)
        except ModelError as error:
            raise ModelError(f"{name_or_dir}: {error}") from error
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
    path = _weights_path(name_or_dir)
    if path is not None:
        require_size(config, records.read_tensor_header(path, ModelError, _COPY_AGAIN), path)
    else:
        _require_shards(name_or_dir, config)
    try:
        with without_progress_bar() if Path(name_or_dir).is_dir() else nullcontext():  # a download shows its progress
            model, report = VitsModel.from_pretrained(
                name_or_dir,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported by name
                trust_remote_code=False,
            )
    except LOADING_ERRORS as error:
        raise _load_error(name_or_dir, error) from error
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    return model, {kind: sorted(map(str, report[kind])) for kind in kinds if report[kind]}


def _weights_do_not_match(name_or_dir: str, unfit: dict[str, list[str]]) -> ModelError:
    listed = "; ".join(f"{kind.replace('_', ' ')} {join_names(names)}" for kind, names in unfit.items())
    return ModelError(f"{name_or_dir}: weights do not match the configuration: {listed}.")


def _require_shards(name_or_dir: str, config: VitsConfig) -> None:
    """Checks the weights of a voice in several files, if it has an index of them, as :func:`require_size` does."""
    try:
        path = find_voice_file(name_or_dir, "model.safetensors.index.json")
        if path is None:
            return  # from_pretrained reports what is missing
        index = records.read_json(path, _WeightsIndex, ModelError, _COPY_AGAIN)
        shapes: dict[str, tuple[int, ...]] = {}
        for name in sorted(set(index["weight_map"].values())):
            shard = find_voice_file(name_or_dir, name)
            if shard is None:
                raise ModelError(f"{path}: {name} is missing. {_COPY_AGAIN}")
            shapes |= records.read_tensor_header(shard, ModelError, _COPY_AGAIN).shapes
    except OSError as error:
        raise _load_error(name_or_dir, error) from error
    require_size(config, records.TensorFile(shapes, {}), path)


def _load_weights(name_or_dir: str) -> dict[str, Tensor]:
    """Returns all weights of a voice's model.safetensors under their names in the file; empty without that file."""
    path = _weights_path(name_or_dir)
    tensors = records.read_tensors(path, ModelError, _COPY_AGAIN) if path else {}
    return {name: weight.float() for name, weight in tensors.items()}


def _weights_path(name_or_dir: str) -> Path | None:
    """Returns the local path of a voice's model.safetensors, downloaded from the Hub if needed; None if missing."""
    try:
        return find_voice_file(name_or_dir, "model.safetensors")
    except OSError as error:
        raise _load_error(name_or_dir, error) from error


def with_weight_norm(model: VitsModel) -> VitsModel:
    """Restores the decoder's weight norm, which is folded in Hugging Face checkpoints. Modifies ``model``."""
    model.decoder.apply_weight_norm()
    for module in model.decoder.modules():
        if parametrize.is_parametrized(module, "weight"):
            parts = module.parametrizations.weight
            parts.original0.data, parts.original1.data = parameter_names.split_weight(parts.original1.data)
    return model


def untrained(config: VitsConfig) -> VitsModel:
    """Creates a voice in training form with transformers' initialisation."""
    model = VitsModel(config)
    if has_type2_blocks(config):
        model.decoder = Type2Decoder(config)
    return with_weight_norm(model)


def model_from_config(directory: Path) -> VitsModel:
    """Creates a voice in training form from the configuration in a checkpoint's ``directory``, without its weights.

    Raises:
        ModelError: the configuration is invalid, or that of another voice than generator.safetensors.
    """
    config = read_config(str(directory))
    weights = directory.parent / "generator.safetensors"
    require_size(config, records.read_tensor_header(weights, ModelError, _COPY_AGAIN), weights)
    return untrained(config)


@contextmanager
def clamp_token_durations(model: VitsModel) -> Iterator[list[Tensor]]:
    """Limits token durations to :data:`MAX_TOKEN_S` during synthesis in this context.

    Durations are exponentials: a diverged voice would generate hours of speech and exhaust memory.

    Yields:
        The log durations in frames, (B, 1, S), of each text synthesized so far.
    """
    spec = audio_spec(model.config)
    maximum = math.log(MAX_TOKEN_S * spec.sampling_rate / spec.hop)

    def cap(module: nn.Module, arguments: object, log_durations: Tensor) -> Tensor:  # noqa: ARG001 - hook signature
        clamped.append(log_durations.nan_to_num(0.0).clamp(max=maximum))
        return clamped[-1]

    clamped: list[Tensor] = []
    hook = model.duration_predictor.register_forward_hook(cap)
    try:
        yield clamped
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
    """Returns a copy on the CPU in the form of transformers' checkpoints, from training form.

    The decoder's weight norm is folded, and its residual blocks of type 2 are doubled (``models/type2_decoder``).

    Raises:
        ModelError: a weight is NaN or Inf.
    """
    require_finite(weights_of(model), "The voice to export", _NONFINITE_REMEDY)
    with torch.device("meta"):
        exported = VitsModel(copy.deepcopy(model.config))
        form = Type2Decoder(model.config) if has_type2_blocks(model.config) else exported.decoder
    decoder = _folded_state(model.decoder, form.state_dict())
    if has_type2_blocks(model.config):
        decoder = doubled_weights(decoder, model.config)
    names = exported.state_dict().keys()
    state = {name: tensor for name, tensor in state_on_cpu(model).items() if name in names}
    state |= {f"decoder.{name}": tensor for name, tensor in decoder.items()}
    exported.load_state_dict(state, assign=True)
    return exported.eval()


def inference_form(model: VitsModel) -> VitsModel:
    """Returns a copy on the CPU without any weight norm, with its own residual blocks.

    Not a deep copy: parametrized layers share a class with their copies, so folding one breaks the other.

    Raises:
        ModelError: a weight is NaN or Inf.
    """
    require_finite(weights_of(model), "The voice to export", _NONFINITE_REMEDY)
    config = copy.deepcopy(model.config)
    with torch.device("meta"):
        form = VitsModel(config)
        if has_type2_blocks(config):
            form.decoder = Type2Decoder(config)
    for module in form.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
    form.load_state_dict(_folded_state(model, form.state_dict()), assign=True)
    return form.eval()


def _folded_state(network: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Returns copies on the CPU of the network's tensors of these names, any weight norm folded."""
    modules = dict(network.named_modules())
    parts = {name: name.rpartition(".") for name in names}
    return {name: getattr(modules[layer], key).detach().cpu().clone() for name, (layer, _, key) in parts.items()}


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


def complete_speaker(voice: str, names: Sequence[str], beginning: str) -> str:
    """Returns the only name that begins so, for flags; ``beginning`` itself if it is a name, or if no name does.

    Raises:
        ConfigError: several names begin so.
    """
    matches = [beginning] if beginning in names else [name for name in names if name.startswith(beginning)]
    if len(matches) > 1:
        known = join_speakers(matches)
        raise ConfigError(f"{voice}: {len(matches)} speakers begin with {beginning}: {known}. Give one.")
    return matches[0] if matches else beginning


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
            f"The voice has {config.num_speakers} speakers, but not {join_speakers(unknown) or 'all'} of the data. Add "
            "them with --extend_speakers true, exclude their clips with --only_speakers, or start from a voice that "
            "includes them."
        )
    return {name: index for index, name in enumerate(names)}


def state_on_cpu(module: nn.Module) -> dict[str, Tensor]:
    """Returns the module's parameters and buffers as contiguous CPU tensors."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
