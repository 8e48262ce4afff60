"""Voices: loading them for training, starting them from scratch, and giving them back to ``transformers``."""

import copy
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import VitsConfig, VitsModel, VitsTokenizer
from transformers.models.vits.modeling_vits import VitsAttention, VitsStochasticDurationPredictor
from transformers.utils import cached_file

from vits_trainer import conversion, pickles
from vits_trainer.architecture import Architecture, DiscriminatorShape
from vits_trainer.audio import AudioSpec
from vits_trainer.config import to_dict
from vits_trainer.discriminator import Discriminator
from vits_trainer.errors import ConfigError, ModelError
from vits_trainer.finite import require_finite, weights_of
from vits_trainer.versions import replacing

DISCRIMINATOR_FILE = "discriminator.safetensors"
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
    config = read_config(name_or_dir)
    config.layerdrop = layerdrop
    try:
        model, report = VitsModel.from_pretrained(
            name_or_dir,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, by name
            trust_remote_code=False,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _not_loaded(name_or_dir, error) from error
    unfit = {kind: sorted(map(str, report[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    model = in_training_form(model)
    if any(unfit.values()):
        weights = _weights_in_file(name_or_dir)
        if not any(name.startswith(_INSIDE) or name.endswith("weight_g") for name in weights):
            raise ModelError(f"{name_or_dir}: its weights do not fit its configuration: {unfit}.")
        own = {
            conversion.discriminator_name(name): weight
            for name, weight in weights.items()
            if not name.startswith(_INSIDE)
        }
        model.load_state_dict(conversion.fitted(own, model.state_dict(), f"voice of {name_or_dir}"))
    require_finite(weights_of(model), name_or_dir, _BROKEN)
    return model


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


def in_training_form(model: VitsModel) -> VitsModel:
    """Puts the decoder's weight norm back, which voices in Hugging Face form carry folded. Changes ``model``."""
    model.decoder.apply_weight_norm()
    return model


def model_to_restore(directory: Path) -> VitsModel:
    """A voice in training form with the configuration in ``directory``, whose weights a checkpoint will bring."""
    return in_training_form(VitsModel(VitsConfig.from_pretrained(directory, trust_remote_code=False)))


def new_model(
    architecture: Architecture, tokenizer: VitsTokenizer, speakers: list[str], layerdrop: float = 0.0
) -> VitsModel:
    """A voice from scratch in training form, with VITS's own initialisation (transformers' is Kaiming's).

    Args:
        architecture: sizes.
        tokenizer: its vocabulary becomes the embedding's.
        speakers: sorted names; a name's place is its id, and they are kept in the model's configuration.
        layerdrop: chance to skip a text encoder layer.
    """
    config = VitsConfig(
        vocab_size=len(tokenizer),
        layerdrop=layerdrop,
        flow_size=architecture.hidden_size,
        num_speakers=max(1, len(speakers)),
        speaker_embedding_size=EMBEDDED_SPEAKER_SIZE if len(speakers) > 1 else 0,
        **to_dict(architecture),
    )
    if len(speakers) > 1:
        config.speakers = speakers
    model = in_training_form(VitsModel(config))
    initialise_as_vits(model)
    return model


def initialise_as_vits(model: VitsModel) -> None:
    """PyTorch's own initialisation with VITS's exceptions. Changes ``model``, in training form.

    N(0, 0.01) in the decoder's upsampling and residual convolutions, zeros in the last layer of each coupling and of
    each spline flow, N(0, C^-0.5) embeddings, Xavier's attention projections.
    """
    width = model.config.hidden_size
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d, nn.Linear)):
            _reset(module)
    for module in model.modules():  # again, as an attention comes before its projections
        if isinstance(module, VitsAttention):
            for projection in (module.q_proj, module.k_proj, module.v_proj):
                nn.init.xavier_uniform_(projection.weight)
            for relative in (module.emb_rel_k, module.emb_rel_v):
                nn.init.normal_(relative, std=(width // model.config.num_attention_heads) ** -0.5)
    nn.init.normal_(model.text_encoder.embed_tokens.weight, std=width**-0.5)
    for module in [*model.decoder.upsampler, *model.decoder.resblocks.modules()]:
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
            module.weight = nn.init.normal_(torch.empty_like(module.weight), std=0.01)
    last_layers = [coupling.conv_post for coupling in model.flow.flows]
    if isinstance(model.duration_predictor, VitsStochasticDurationPredictor):
        splines = [*model.duration_predictor.flows[1:], *model.duration_predictor.post_flows[1:]]
        last_layers += [spline.conv_proj for spline in splines]
    for layer in last_layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    if model.config.num_speakers > 1:
        nn.init.normal_(model.embed_speaker.weight)


def _reset(layer: nn.Conv1d | nn.ConvTranspose1d | nn.Linear) -> None:
    """PyTorch's default, through weight norm where the layer has it: there ``weight`` is computed from g and v."""
    if parametrize.is_parametrized(layer, "weight"):
        weight = torch.empty_like(layer.weight)
        nn.init.kaiming_uniform_(weight, a=5**0.5)
        layer.weight = weight
        if layer.bias is not None:
            fan_in, _ = nn.init._calculate_fan_in_and_fan_out(weight)
            nn.init.uniform_(layer.bias, -(fan_in**-0.5), fan_in**-0.5)
    else:
        layer.reset_parameters()


def freeze(model: VitsModel, parts: Iterable[str]) -> None:
    """Leaves parts of a voice as they are: none of their parameters takes a gradient. Changes ``model``.

    Before an optimiser is built, and before the ranks are joined, as both take what is to be trained.

    Raises:
        ConfigError: nothing would be left to train.
    """
    parts = list(parts)
    for part in parts:
        getattr(model, part).requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            f"--freeze {','.join(parts)} leaves nothing to train (--objective mel freezes the posterior encoder by "
            "itself). Leave out a part."
        )


@contextmanager
def unhurried(model: VitsModel) -> Iterator[None]:
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


def folded(model: VitsModel) -> VitsModel:
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
    exported = folded(model)
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


def save_discriminator(discriminator: Discriminator, path: Path) -> None:
    """Writes the discriminators' weights, with their sizes in the file's metadata."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in discriminator.state_dict().items()}
    save_file(tensors, path, metadata={"shape": json.dumps(to_dict(discriminator.shape))})


def load_discriminator(path: Path) -> Discriminator:
    """Reads what :func:`save_discriminator` wrote.

    Raises:
        ModelError: the file is damaged or holds something else, or a weight is not finite.
    """
    try:
        with safe_open(path, "pt") as file:
            shape = json.loads((file.metadata() or {})["shape"])
        discriminator = Discriminator(DiscriminatorShape(tuple(shape["periods"]), shape["channels_divisor"]))
        discriminator.load_state_dict(load_file(path))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{path}: no discriminators could be loaded ({reason}). Delete it to start afresh.") from error
    require_finite(weights_of(discriminator), path, "Delete it to start with fresh discriminators.")
    return discriminator


def discriminator_for(voice: str | None, fresh: DiscriminatorShape, given: str | None = None) -> Discriminator:
    """The discriminators that are given, or else lie beside a voice or inside its file, or fresh ones.

    Args:
        voice: a folder or Hub name.
        fresh: the sizes of fresh ones.
        given: what :func:`read_discriminator` reads.

    Raises:
        ModelError: there are some and they cannot be read.
    """
    if given is not None:
        return read_discriminator(given)
    if voice is not None and has_discriminator(voice):
        return read_discriminator(voice)
    return Discriminator(fresh)


def has_discriminator(voice: str) -> bool:
    """Whether discriminators lie beside a local voice, or inside the file of a local voice or one of the Hub."""
    return (Path(voice) / DISCRIMINATOR_FILE).is_file() or bool(_names_inside(voice))


def read_discriminator(source: str) -> Discriminator:
    """Discriminators from wherever they come.

    Args:
        source: a ``D_*.pth`` of original VITS or MMS; a discriminator.safetensors; or a voice, a folder or Hub name,
            that has them beside it or inside its file, as finetune-hf-vits has.

    Raises:
        ModelError: there are none, or they cannot be read or are not VITS's.
    """
    path = Path(source)
    if path.suffix in (".pth", ".pt", ".ckpt"):
        content = pickles.load(path)
        weights = content.get("model", content) if isinstance(content, dict) else {}
        named = {str(name): weight for name, weight in weights.items()} if isinstance(weights, dict) else {}
        return discriminator_from_original(named, source)
    if path.suffix == ".safetensors":
        return load_discriminator(path)
    if (path / DISCRIMINATOR_FILE).is_file():
        return load_discriminator(path / DISCRIMINATOR_FILE)
    if _names_inside(source):
        inside = {
            name.removeprefix(_INSIDE).replace(".final_conv.", ".conv_post."): weight
            for name, weight in _weights_in_file(source).items()
            if name.startswith(_INSIDE)
        }
        return discriminator_from_original(inside, source)
    raise ModelError(
        f"{source}: there are no discriminators. Give a D_*.pth, a {DISCRIMINATOR_FILE} or a voice that has one."
    )


def discriminator_from_original(
    given: Mapping[str, Any], source: str, periods: tuple[int, ...] | None = None
) -> Discriminator:
    """Discriminators from their weights under the original's names, with weight norm or folded.

    Args:
        given: weights by name; what is no tensor is left out.
        source: what to call them.
        periods: where a configuration states them.

    Raises:
        ModelError: they are not VITS's, or not finite; each parameter that does not fit is named.
    """
    tensors = {name: weight for name, weight in given.items() if isinstance(weight, Tensor)}
    weights = {name: weight.float() for name, weight in conversion.named_as_original(tensors).items()}
    try:
        shape = conversion.discriminator_shape({name: weight.shape for name, weight in weights.items()}, periods)
        discriminator = Discriminator(shape)
        discriminator.load_state_dict(conversion.from_original_discriminator(weights, discriminator.state_dict()))
    except ModelError as error:
        raise ModelError(f"{source}: {error}") from error
    require_finite(weights_of(discriminator), source, "Take the discriminators of an earlier checkpoint.")
    return discriminator


def _names_inside(voice: str) -> list[str]:
    """Names of the discriminators' parameters inside a voice's own file."""
    path = _file_of(voice)
    if path is None:
        return []
    try:
        with safe_open(path, "pt") as file:
            return [name for name in file.keys() if name.startswith(_INSIDE)]  # noqa: SIM118 - safe_open is no mapping
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read ({error}). Download or copy the voice again.") from error


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
