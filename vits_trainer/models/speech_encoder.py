"""Frozen speech encoders of transformers (WavLM, HuBERT, wav2vec 2.0 ...), for a discriminator on their states."""

import hashlib
import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torchaudio
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PreTrainedModel, Wav2Vec2FeatureExtractor

from vits_trainer.config.framing import AudioSpec
from vits_trainer.config.train import TrainConfig
from vits_trainer.models.discriminator import Discriminator, EncoderInputs
from vits_trainer.models.precision import at_least_float32
from vits_trainer.models.pretrained import LOADING_ERRORS
from vits_trainer.models.weight_cast import cast_weights
from vits_trainer.utils import records, safe_pickle
from vits_trainer.utils.errors import ConfigError, ModelError
from vits_trainer.utils.finite_weights import require_finite, weights_of
from vits_trainer.utils.logging import without_progress_bar
from vits_trainer.utils.strings import join_names
from vits_trainer.utils.voice_files import find_voice_file

logger = logging.getLogger(__name__)

FLAG = "--discriminator_encoder"
VARIANCE_EPS = 1e-7
"""Of transformers' ``Wav2Vec2FeatureExtractor``."""
_REMEDY = (
    "Pass a folder with config.json, preprocessor_config.json and model.safetensors of WavLM, HuBERT, wav2vec 2.0 or "
    "the like, or a name on the Hub."
)
_MASK = "masked_spec_embed"
"""Weight for masking in pretraining, which many checkpoints lack."""


class SpeechEncoder:
    """A frozen encoder, called with waveforms of the voice. Gradients pass through it to them.

    Not a module: nothing that trains, saves, wraps or casts a network's submodules reaches it.
    """

    def __init__(
        self, model: PreTrainedModel, extractor: Wav2Vec2FeatureExtractor, layers: Sequence[int], voice_rate_hz: int
    ) -> None:
        """Args:
        model: takes waveforms.
        extractor: what it expects of a waveform.
        layers: its hidden states to return; empty = all.
        voice_rate_hz: sampling rate of the waveforms.

        Raises:
            ConfigError: the model does not have one of the layers.
        """
        self.model = model.eval().requires_grad_(False)  # in eval mode without dropout, layerdrop and masking
        self.rate_hz: int = extractor.sampling_rate
        self.normalizes: bool = extractor.do_normalize
        self.voice_rate_hz = voice_rate_hz
        last = int(model.config.num_hidden_layers)
        missing = [layer for layer in layers if layer > last]
        if missing:
            raise ConfigError(
                f"{FLAG}_layers {list(layers)}: the encoder has the hidden states 0 to {last}, not {missing[0]}."
            )
        self.layers = tuple(layers) or tuple(range(last + 1))
        stack = getattr(model.encoder, "layers", None)
        if isinstance(stack, nn.ModuleList):
            # The layer after the last hidden state stays: of some models, the output of the last layer is normalized.
            del stack[max(self.layers) + 1 :]

    @property
    def inputs(self) -> EncoderInputs:
        """What a discriminator has to know of it; reads all weights."""
        digest = hashlib.sha256(f"{self.model.config.model_type} {self.rate_hz} {self.normalizes}".encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            if not name.endswith(_MASK):
                digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return EncoderInputs(self.layers, int(self.model.config.hidden_size), digest.hexdigest())

    # A compiled discriminator would otherwise compile every layer of the encoder, too.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, waveform: Tensor) -> Tensor:
        """Returns the hidden states, (B, layers * channels, positions), of (B, 1, N) waveforms."""
        if self.model.device != waveform.device:
            self.model.to(waveform.device)
        samples = self.prepared(waveform).to(self.model.dtype)
        with cast_weights([self.model]):
            states = self.model(samples, output_hidden_states=True).hidden_states
        return torch.cat([states[layer] for layer in self.layers], -1).transpose(1, 2)

    def prepared(self, waveform: Tensor) -> Tensor:
        """Returns (B, 1, N) waveforms as the encoder expects them, (B, samples at its rate), in at least float32."""
        with torch.autocast(waveform.device.type, enabled=False):
            samples: Tensor = at_least_float32(waveform)[:, 0]
            samples = torchaudio.functional.resample(samples, self.voice_rate_hz, self.rate_hz)
            if self.normalizes:
                variance, mean = torch.var_mean(samples, -1, keepdim=True, correction=0)
                samples = (samples - mean) / torch.sqrt(variance + VARIANCE_EPS)
        return samples

    def require_segment(self, frames: int, hop: int) -> None:
        """Raises ConfigError if segments of ``frames`` frames of ``hop`` samples are too short for the encoder."""
        needed = 1
        for kernel, stride in reversed(
            list(zip(self.model.config.conv_kernel, self.model.config.conv_stride, strict=True))
        ):
            needed = (needed - 1) * stride + kernel
        samples = math.ceil(frames * hop * self.rate_hz / self.voice_rate_hz)
        if samples < needed:
            least = math.ceil(needed * self.voice_rate_hz / self.rate_hz / hop)
            raise ConfigError(
                f"--segment_frames {frames}: {samples} samples at {self.rate_hz} Hz are too short for the encoder of "
                f"{FLAG}, which needs {needed}. Must be at least {least}."
            )


def load_speech_encoder(name_or_dir: str, layers: Sequence[int], voice_rate_hz: int) -> SpeechEncoder:
    """Loads a speech encoder from a local directory or the Hub, in float32.

    Args:
        name_or_dir: of a model of transformers that takes waveforms.
        layers: hidden states to use; empty = all.
        voice_rate_hz: sampling rate of the waveforms that it will be called with.

    Raises:
        ConfigError: it does not have one of the layers.
        ModelError: it is missing, unreadable or no such encoder, or its weights do not match its configuration or are
            NaN or Inf.
    """
    try:
        with without_progress_bar() if Path(name_or_dir).is_dir() else nullcontext():  # a download shows its progress
            model, report = _from_pretrained(name_or_dir)
            extractor = Wav2Vec2FeatureExtractor.from_pretrained(name_or_dir, trust_remote_code=False)
    except (*LOADING_ERRORS, StrictDataclassError) as error:
        raise _load_error(name_or_dir, " ".join(str(error).split())[:300]) from error
    wrong = [*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])]
    wrong = sorted(name for name in map(str, wrong) if not name.endswith(_MASK))
    if wrong:
        raise _load_error(name_or_dir, f"weights are missing or of another shape: {join_names(wrong)}")
    require_finite(weights_of(model), f"{FLAG} {name_or_dir}", "Download or copy it again.")
    return SpeechEncoder(model, extractor, layers, voice_rate_hz)


def attach_speech_encoder(discriminator: Discriminator, config: TrainConfig, spec: AudioSpec, is_resumed: bool) -> bool:
    """Loads the encoder of a run, and attaches it to the discriminator on its hidden states.

    Without ``is_resumed``, adds that discriminator with random weights if there is none for these hidden states, and
    removes it if the run has no encoder.

    Args:
        discriminator: of the voice to train on, or of the checkpoint.
        config: of the run.
        spec: of the voice.
        is_resumed: whether the discriminators are those of a checkpoint, to be kept as they are.

    Returns:
        Whether the discriminator on the hidden states has random weights.

    Raises:
        ConfigError: the encoder does not have one of the layers or needs longer segments, or is not the checkpoint's.
        ModelError: the encoder cannot be loaded.
    """
    known = None if discriminator.on_encoder is None else discriminator.on_encoder.inputs
    name = config.discriminator_encoder
    if is_resumed and (name is None) != (known is None):
        raise ConfigError(
            f"{FLAG} {name}: the checkpoint has no discriminator on an encoder. Omit it, or start a new run from the "
            "voice."
            if name
            else f"The checkpoint has a discriminator on a speech encoder. Pass {FLAG}, the encoder of the run."
        )
    if name is None:
        if known is not None:
            logger.info("Leaving out the voice's discriminator on a speech encoder: there is no %s.", FLAG)
            discriminator.replace_on_encoder(None)
        return False
    encoder = load_speech_encoder(name, config.discriminator_encoder_layers, spec.sampling_rate)
    encoder.require_segment(config.segment_frames, spec.hop)
    inputs = encoder.inputs
    if is_resumed and inputs != known:
        raise ConfigError(
            f"{FLAG} {name}, layers {list(inputs.layers)}: not the encoder and the layers of the checkpoint"
            f"{f', layers {list(known.layers)}' if known else ''}. Pass those that the run began with."
        )
    if inputs != known:
        if known is not None:
            logger.info("Replacing the voice's discriminator on a speech encoder: it has another encoder or layers.")
        discriminator.replace_on_encoder(inputs)
    discriminator.attach_encoder(encoder)
    return inputs != known


def _from_pretrained(name_or_dir: str) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Returns the model, and the names of weights that are missing, unexpected or of another shape."""
    path = find_voice_file(name_or_dir, "config.json")
    if path is None:
        raise FileNotFoundError("there is no config.json")
    values = records.read_json(path, dict[str, Any], ModelError, _REMEDY, max_bytes=records.MAX_UNTYPED_BYTES)
    kind = values.get("model_type")
    # Not by AutoModel, which would ask whether to run code from the folder.
    config: Any = CONFIG_MAPPING[kind].from_dict(values) if kind in CONFIG_MAPPING else None
    model_class: Any = None if config is None else MODEL_MAPPING.get(type(config), None)
    if getattr(model_class, "main_input_name", None) != "input_values" or not hasattr(config, "conv_kernel"):
        raise _load_error(name_or_dir, f"model_type is {kind}, not a speech encoder that takes waveforms")
    options: dict[str, Any] = {
        "config": config,
        "dtype": torch.float32,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # reported by name
    }
    safe_names = ("model.safetensors", "model.safetensors.index.json")
    has_pickle_only = not any(find_voice_file(name_or_dir, name) for name in safe_names)
    pickled = find_voice_file(name_or_dir, "pytorch_model.bin") if has_pickle_only else None
    if pickled is None:
        model, report = model_class.from_pretrained(
            name_or_dir, use_safetensors=True, trust_remote_code=False, **options
        )
    else:
        weights = safe_pickle.load(pickled)
        model, report = model_class.from_pretrained(None, state_dict=weights, trust_remote_code=False, **options)
    return model, report


def _load_error(name_or_dir: str, reason: str) -> ModelError:
    return ModelError(f"{FLAG} {name_or_dir}: cannot load a speech encoder ({reason}). {_REMEDY}")
