"""Export of a voice to one ONNX file from token ids to speech, and comparison of onnxruntime with PyTorch.

Uses torch's exporter based on ``torch.export``: the text length is dynamic, as verified by the exporter, and the speech
length follows from the predicted durations. The graph does not depend on the example input.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import VitsModel, VitsTokenizer

from vits_trainer.models.conversion.half_precision import store_as_half
from vits_trainer.models.conversion.onnx_packages import open_session, require_packages
from vits_trainer.models.duration_predictor import log_durations
from vits_trainer.models.encoders import encode_text, reversed_flow
from vits_trainer.models.pretrained import (
    MAX_TOKEN_S,
    audio_spec,
    clamp_token_durations,
    inference_form,
)
from vits_trainer.utils.errors import ModelError
from vits_trainer.utils.files import replace_file, temporary_sibling_dir
from vits_trainer.utils.records import parse_json

OPSET = 18
"""Supported by onnxruntime since 1.14 (2023)."""
TOLERANCE = 1e-3
"""Maximum difference of a sample (full scale 1) between onnxruntime and PyTorch without noise."""
_MAX_TEXT_TOKENS = 4096
"""Maximum number of token ids declared to the exporter; onnxruntime accepts longer texts."""


class InferenceModule(nn.Module):
    """Inference of ``VitsModel`` for one text, with the scales as inputs and without data-dependent branches."""

    def __init__(self, model: VitsModel) -> None:
        super().__init__()
        self.model = model
        spec = audio_spec(model.config)
        self.max_log_duration = math.log(MAX_TOKEN_S * spec.sampling_rate / spec.hop)

    def forward(
        self,
        tokens: Tensor,
        noise_scale: Tensor,
        length_scale: Tensor,
        noise_scale_duration: Tensor,
        speaker_id: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns speech, (1, T) samples, and the duration of each token in frames, (1, S).

        Args:
            tokens: (1, S) ids.
            noise_scale: () variation of the speech; 0 = deterministic.
            length_scale: () 2 = half as fast.
            noise_scale_duration: () variation of the rhythm.
            speaker_id: (1,) for multi-speaker voices.
        """
        model = self.model
        mask = torch.ones_like(tokens, dtype=torch.float32)[:, None]  # (1, 1, S)
        speaker = None if speaker_id is None else model.embed_speaker(speaker_id)[:, :, None]
        hidden, mean, log_std = encode_text(model.text_encoder, tokens, mask)
        noise = torch.randn_like(hidden[:, :2]) * noise_scale_duration
        durations = log_durations(model.duration_predictor, hidden, mask, speaker, noise).clamp(
            max=self.max_log_duration
        )
        token_frames = torch.ceil(torch.exp(durations) * length_scale)[0]  # (1, S)
        ends = token_frames[0].cumsum(0)  # (S,) exclusive end of each token
        frames: Any = ends[-1].clamp(min=1).long().item()  # symbolic in the exporter; int() would need its value
        torch._check(frames >= 1)
        is_after_end = torch.arange(frames, device=tokens.device)[:, None] >= ends  # (T, S)
        token_of_frame = is_after_end.sum(-1).clamp(max=tokens.shape[1] - 1)
        mean, log_std = mean.index_select(2, token_of_frame), log_std.index_select(2, token_of_frame)
        latents = mean + torch.randn_like(mean) * torch.exp(log_std) * noise_scale
        latents = reversed_flow(model.flow, latents, torch.ones_like(latents[:, :1]), speaker)
        speech: Tensor = model.decoder(latents, speaker)[:, 0]
        return speech, token_frames.long()


@dataclass(frozen=True)
class OnnxComparison:
    """Comparison of onnxruntime and PyTorch on one text."""

    difference: float
    """Maximum difference of a sample, without noise."""
    audio_s: float
    onnx_s: float
    """Median time of onnxruntime."""
    torch_s: float
    """Median time of PyTorch, ``VitsModel.forward``."""
    cores: int

    def __str__(self) -> str:
        ours, theirs = self.onnx_s / self.audio_s, self.torch_s / self.audio_s
        return (
            f"{self.audio_s:.1f} s of speech on {self.cores} core{'s' if self.cores > 1 else ''}: real-time factor "
            f"{ours:.3f} in onnxruntime, {theirs:.3f} in PyTorch; maximum sample difference {self.difference:.1e}"
        )


def export_onnx(model: VitsModel, tokenizer: VitsTokenizer, path: Path, stores_half: bool = False) -> None:
    """Writes a voice to ``path`` atomically.

    The inputs are those of :class:`InferenceModule`, the outputs ``waveform`` and ``durations``. Metadata values are
    JSON: sampling_rate, hop, vocabulary (ids by symbol), add_blank (id 0 around each symbol), phonemize, is_uroman,
    speakers (names by id) and the voice's defaults of noise_scale, noise_scale_duration and length_scale.

    Args:
        model: in training form, or from :func:`~vits_trainer.models.conversion.half_precision.rounded_to_half`.
        tokenizer: tokenizer of the voice.
        path: output file; an existing file is overwritten.
        stores_half: store weights as float16 that have its precision.

    Raises:
        InstallationError: packages are missing.
    """
    example: dict[str, Tensor] = {
        "tokens": torch.arange(24)[None] % model.config.vocab_size,
        "noise_scale": torch.tensor(model.config.noise_scale),
        "length_scale": torch.tensor(1 / model.config.speaking_rate),
        "noise_scale_duration": torch.tensor(model.config.noise_scale_duration),
    }
    if model.config.num_speakers > 1:
        example["speaker_id"] = torch.zeros(1, dtype=torch.long)
    module = InferenceModule(inference_form(model)).eval()
    metadata = {name: json.dumps(value, ensure_ascii=False) for name, value in _metadata(model, tokenizer).items()}
    with temporary_sibling_dir(path) as folder:
        file = export_graph(module, example, tuple(example), ("waveform", "durations"), folder / path.name)
        save_graph(file, metadata, folder / path.name, stores_half)
        replace_file(folder / path.name, path)


def export_graph(
    module: nn.Module, example: dict[str, Tensor], inputs: tuple[str, ...], outputs: tuple[str, ...], path: Path
) -> Any:
    """Exports a module of one text.

    Args:
        module: its first argument is the tokens, (1, S).
        example: arguments by name.
        inputs: names of the arguments in the file.
        outputs: names of the results in the file.
        path: file for PyTorch to write to.

    Returns:
        The file as ``onnx.ModelProto``.

    Raises:
        InstallationError: packages are missing.
    """
    require_packages()
    import onnx  # noqa: PLC0415 - optional

    dynamic_shapes: dict[str, Any] = dict.fromkeys(example)
    dynamic_shapes[next(iter(example))] = {1: torch.export.Dim("text", min=2, max=_MAX_TEXT_TOKENS)}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # warns about missing torchvision, which is not needed
    with torch.no_grad():
        torch.onnx.export(
            module,
            kwargs=example,
            f=path,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=dynamic_shapes,
            external_data=False,
            verbose=False,
        )
    return onnx.load(path)


def save_graph(file: Any, metadata: Mapping[str, str], path: Path, stores_half: bool) -> None:
    """Writes an ``onnx.ModelProto`` with metadata, and with ``stores_half`` its weights as float16 where exact."""
    import onnx  # noqa: PLC0415 - optional

    if stores_half:
        store_as_half(file.graph)
    for name, value in metadata.items():
        entry = file.metadata_props.add()
        entry.key, entry.value = name, value
    onnx.save(file, path)


def _metadata(model: VitsModel, tokenizer: VitsTokenizer) -> dict[str, Any]:
    config = model.config
    return {
        "sampling_rate": config.sampling_rate,
        "hop": audio_spec(config).hop,
        "vocabulary": tokenizer.encoder,
        "add_blank": tokenizer.add_blank,
        "phonemize": tokenizer.phonemize,
        "is_uroman": tokenizer.is_uroman,
        "speakers": getattr(config, "speakers", None) or [str(number) for number in range(max(1, config.num_speakers))],
        "noise_scale": config.noise_scale,
        "noise_scale_duration": config.noise_scale_duration,
        "length_scale": 1 / config.speaking_rate,
    }


class OnnxVoice:
    """An exported voice, run by onnxruntime on the CPU."""

    def __init__(self, path: Path) -> None:
        """Loads the file.

        Raises:
            InstallationError: onnxruntime is missing.
            ModelError: the file cannot be loaded.
        """
        self.session = open_session(path)
        metadata = self.session.get_modelmeta().custom_metadata_map
        remedy = "Convert the voice again."
        self.metadata: dict[str, Any] = {
            name: parse_json(value, f"{path}: {name}", cast("type[Any]", Any), ModelError, remedy)
            for name, value in metadata.items()
        }
        """Metadata written by :func:`export_onnx`."""

    def speak(
        self,
        token_ids: NDArray[np.int64],
        noise_scale: float | None = None,
        length_scale: float | None = None,
        noise_scale_duration: float | None = None,
        speaker_id: int = 0,
    ) -> NDArray[np.float32]:
        """Returns speech (T,) for token ids (S,) including blanks. Scales default to those of the voice."""
        defaults = self.metadata
        scales = {
            "noise_scale": noise_scale,
            "length_scale": length_scale,
            "noise_scale_duration": noise_scale_duration,
        }
        inputs: dict[str, Any] = {
            name: np.array(defaults[name] if scale is None else scale, dtype=np.float32)
            for name, scale in scales.items()
        }
        inputs |= {"tokens": token_ids[None], "speaker_id": np.array([speaker_id])}
        input_names = {entry.name for entry in self.session.get_inputs()}
        known = {name: value for name, value in inputs.items() if name in input_names}
        speech: NDArray[np.float32] = self.session.run(["waveform"], known)[0][0]
        return speech


def compare_onnx(model: VitsModel, path: Path, tokens: int = 151, rounds: int = 3) -> OnnxComparison:
    """Compares output and speed of a file of :func:`export_onnx` and PyTorch: see :func:`compare_speech`."""
    voice = OnnxVoice(path)

    def by_onnx(ids: NDArray[np.int64]) -> NDArray[np.float32]:
        return voice.speak(ids, noise_scale=0.0, length_scale=1.0, noise_scale_duration=0.0)

    return compare_speech(model, path, by_onnx, tokens, rounds)


def compare_speech(
    model: VitsModel,
    path: Path,
    by_onnx: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    tokens: int = 151,
    rounds: int = 3,
) -> OnnxComparison:
    """Compares output and speed of both on one synthetic text, without noise, after one warm-up round.

    Args:
        model: in training form, or rounded.
        path: the ONNX file, for messages.
        by_onnx: returns its speech, (T,), of token ids, (S,), without noise.
        tokens: number of token ids in the text, including blanks; odd.
        rounds: number of timed rounds.

    Raises:
        ModelError: the outputs differ by more than :data:`TOLERANCE`, or in length.
    """
    torch_voice = inference_form(model)
    torch_voice.noise_scale = torch_voice.noise_scale_duration = 0.0
    ids = np.zeros(tokens, dtype=np.int64)
    ids[1::2] = 1 + np.arange(len(ids[1::2])) % max(1, model.config.vocab_size - 1)
    speaker = 0 if model.config.num_speakers > 1 else None

    def by_torch() -> NDArray[np.float32]:
        with torch.inference_mode(), clamp_token_durations(torch_voice):
            spoken = torch_voice(torch.from_numpy(ids)[None], speaker_id=speaker, speaking_rate=1.0).waveform
        samples: NDArray[np.float32] = spoken[0].numpy()
        return samples

    expected, spoken = by_torch(), by_onnx(ids)
    difference = float(np.abs(expected - spoken).max()) if expected.shape == spoken.shape else math.inf
    if not difference <= TOLERANCE:
        raise ModelError(
            f"{path}: output differs from the voice: {len(spoken)} samples instead of {len(expected)}, maximum "
            f"difference {difference:.1e}. Do not use it. Try another version of torch or onnxruntime."
        )
    audio_s = len(expected) / model.config.sampling_rate
    onnx_s, torch_s = _median_s(lambda: by_onnx(ids), rounds), _median_s(by_torch, rounds)
    return OnnxComparison(difference, audio_s, onnx_s, torch_s, torch.get_num_threads())


def _median_s(speak: Callable[[], object], rounds: int) -> float:
    durations_s = []
    for _ in range(rounds):
        start = time.perf_counter()
        speak()
        durations_s.append(time.perf_counter() - start)
    return float(np.median(durations_s))
