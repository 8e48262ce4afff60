"""Voices: loading them for training, starting them from scratch, and giving them back to ``transformers``."""

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
from vits_trainer.models.voice_versions import replacing
from vits_trainer.utils.errors import ModelError
from vits_trainer.utils.finite_weights import require_finite, weights_of

_INSIDE = "discriminator."
"""What finetune-hf-vits puts before the discriminators' names, in model.safetensors beside the voice's own weights."""
EMBEDDED_SPEAKER_SIZE = 256
"""As VITS has it."""
_BROKEN = "Take an earlier version of it, or train it again with a lower --learning_rate."
LONGEST_TOKEN_S = 2.0
"""Of speech from text: longer than any sound or pause of a sentence."""


def read_config(name_or_dir: str) -> VitsConfig:
    """A voice's configuration, read without ``AutoConfig``: that one asks whether to run code of the voice's folder.

    Raises:
        ModelError: it cannot be found or read, or is of another kind of model.
    """
    try:
        stated, _ = VitsConfig.get_config_dict(name_or_dir)
        kind = stated.get("model_type")
        if kind != VitsConfig.model_type:
            raise ModelError(f"{name_or_dir} is a {kind} model, not a VITS voice. Give a VITS or MMS-TTS one.")
        return VitsConfig.from_dict(stated)
    except (OSError, ValueError) as error:
        raise _not_loaded(name_or_dir, error) from error


def _not_loaded(name_or_dir: str, error: Exception) -> ModelError:
    return ModelError(
        f"{name_or_dir}: no voice could be loaded from there ({' '.join(str(error).split())[:300]}). Give a local "
        "folder with config.json and model.safetensors, or a Hub name while the Hub can be reached."
    )


def load_model(name_or_dir: str, layerdrop: float = 0.0) -> VitsModel:
    """A voice from a local folder or the Hub, in training form: float32, the decoder's weight norm unfolded.

    It is in eval mode, as ``from_pretrained`` leaves it; the trainer sets the mode. Checkpoints of finetune-hf-vits are
    taken as well, whose file holds discriminators (see :func:`discriminator_for`) and may carry weight norm everywhere.

    Raises:
        ModelError: it cannot be found or read, is no VITS model, or its weights do not fit its configuration or are
            not finite.
    """
    model, unfit = _from_pretrained(name_or_dir, layerdrop)
    model = with_weight_norm(model)
    if unfit:
        weights = _weights_in_file(name_or_dir)
        if not any(name.startswith(_INSIDE) or name.endswith("weight_g") for name in weights):
            raise _weights_do_not_match(name_or_dir, unfit)
        own = {
            parameter_names.discriminator_name(name): weight
            for name, weight in weights.items()
            if not name.startswith(_INSIDE)
        }
        model.load_state_dict(parameter_names.match_state_dict(own, model.state_dict(), f"voice of {name_or_dir}"))
    require_finite(weights_of(model), name_or_dir, _BROKEN)
    return model


def load_for_inference(name_or_dir: str) -> VitsModel:
    """Returns a voice from a local folder or the Hub as transformers loads it: float32, in eval mode.

    Raises:
        ModelError: it cannot be found or read, is no VITS model, or its weights do not match or are NaN or Inf.
    """
    model, unfit = _from_pretrained(name_or_dir)
    if unfit:
        raise _weights_do_not_match(name_or_dir, unfit)
    require_finite(weights_of(model), name_or_dir, _BROKEN)
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
        raise _not_loaded(name_or_dir, error) from error
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    return model, {kind: sorted(map(str, report[kind])) for kind in kinds if report[kind]}


def _weights_do_not_match(name_or_dir: str, unfit: dict[str, list[str]]) -> ModelError:
    return ModelError(f"{name_or_dir}: its weights do not match its configuration: {unfit}.")


def _weights_in_file(name_or_dir: str) -> dict[str, Tensor]:
    """Everything in a voice's one model.safetensors, under the names there; empty where there is no such file."""
    path = _file_of(name_or_dir)
    return {name: weight.float() for name, weight in load_file(path).items()} if path else {}


def _file_of(name_or_dir: str) -> str | None:
    """A voice's model.safetensors on this disk, fetched from the Hub where need be; None where there is none."""
    try:
        path: str | None = cached_file(
            name_or_dir,
            "model.safetensors",
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except OSError:  # neither a folder nor a name of the Hub
        return None
    return path


def with_weight_norm(model: VitsModel) -> VitsModel:
    """Puts the decoder's weight norm back, which voices in Hugging Face form carry folded. Changes ``model``."""
    model.decoder.apply_weight_norm()
    return model


def model_to_restore(directory: Path) -> VitsModel:
    """A voice in training form with the configuration in ``directory``, whose weights a checkpoint will bring."""
    return with_weight_norm(VitsModel(VitsConfig.from_pretrained(directory, trust_remote_code=False)))


@contextmanager
def clamp_token_durations(model: VitsModel) -> Iterator[None]:
    """Inside, no token lasts longer than :data:`LONGEST_TOKEN_S` of speech from text.

    Durations are exponentials: those of a voice that has diverged would ask for hours of speech, and all memory.
    """
    spec = audio_spec(model.config)
    most = math.log(LONGEST_TOKEN_S * spec.sampling_rate / spec.hop)

    def cap(module: nn.Module, arguments: object, log_durations: Tensor) -> Tensor:  # noqa: ARG001 - a hook's arguments
        return log_durations.nan_to_num(0.0).clamp(max=most)

    hook = model.duration_predictor.register_forward_hook(cap)
    try:
        yield
    finally:
        hook.remove()


def audio_spec(config: VitsConfig) -> AudioSpec:
    """The framing that a voice's configuration implies."""
    hop = 1
    for rate in config.upsample_rates:
        hop *= rate
    n_fft = 2 * (config.spectrogram_bins - 1)
    return AudioSpec(sampling_rate=config.sampling_rate, n_fft=n_fft, window=n_fft, hop=hop)


def fold_weight_norm(model: VitsModel) -> VitsModel:
    """A copy on the CPU with the decoder's weight norm folded into its weights, as transformers' checkpoints have it.

    Not by a deep copy: torch's parametrized layers share a class with their copies, and folding one breaks the other.

    Raises:
        ModelError: a weight is not finite.
    """
    require_finite(weights_of(model), "The voice to be written", _BROKEN)
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
    """Writes a voice that ``VitsModel.from_pretrained`` and ``pipeline("text-to-speech")`` load as it is.

    Into a temporary folder beside ``directory`` first, read back and compared, and only then into its place.

    Args:
        model: in training form.
        tokenizer: the voice's.
        discriminator: kept beside the voice so that it can be tuned again.
        directory: claimed; a voice in it becomes one of so many versions that are kept.
        keep_versions: 0 = all.

    Raises:
        ConfigError: something else than a voice is in ``directory``.
        ModelError: a weight is not finite, or what was written is not what was trained.
    """
    exported = fold_weight_norm(model)
    if discriminator is not None:
        require_finite(weights_of(discriminator), "The discriminators to be written", _BROKEN)
    with replacing(directory, keep_versions) as temporary:
        # legacy names of weight norm (weight_g) would come back from a voice that was loaded with them
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
    """Names of a voice's speakers in the order of their ids; of those without a name, the id. None for one speaker."""
    if config.num_speakers <= 1:
        return []
    names: list[str] = getattr(config, "speakers", None) or []
    return [*names, *map(str, range(len(names), config.num_speakers))]


def speaker_ids(config: VitsConfig, speakers: list[str]) -> dict[str, int] | None:
    """Ids of the data's speakers (sorted names) in a voice: as kept with it, else their places. None for one speaker.

    Raises:
        ModelError: the voice does not know a speaker.
    """
    if config.num_speakers <= 1:
        return None
    names: list[str] = getattr(config, "speakers", None) or speakers
    unknown = sorted(set(speakers) - set(names))
    if unknown or len(names) > config.num_speakers:
        raise ModelError(
            f"The voice has {config.num_speakers} speakers and does not know {', '.join(unknown[:5]) or 'all'} of the "
            "data's. Add them with --extend_speakers true, leave their clips out with --only_speakers, or start from a "
            "voice that knows them."
        )
    return {name: index for index, name in enumerate(names)}


def state_on_cpu(module: nn.Module) -> dict[str, Tensor]:
    """The module's parameters and buffers as contiguous CPU tensors."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
