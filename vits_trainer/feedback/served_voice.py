"""The voice that is served: loaded once, loaded again when its folder has been replaced, spoken by one at a time."""

import io
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vits_trainer.evaluation.synthesis import SynthesisOptions, Voice, unknown_characters
from vits_trainer.models.pretrained import audio_spec
from vits_trainer.models.spectrogram import log_mel, spectrogram
from vits_trainer.tracking.plots import mel_picture
from vits_trainer.utils.errors import ConfigError
from vits_trainer.utils.files import sha256

logger = logging.getLogger(__name__)

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_PICTURE_INCHES = 5.8


@dataclass(frozen=True)
class SpokenText:
    """One text as the voice said it once."""

    text: str
    seed: int
    model: str
    """SHA-256 of the weights."""
    samples: NDArray[np.float32]
    """(T,), full scale at 1."""
    rate_hz: int
    unknown: str
    """Letters of the text that the voice does not know and leaves out."""


class ServedVoice:
    """A voice in a folder that may be replaced at any moment. Several threads may use it."""

    def __init__(self, model_dir: str) -> None:
        """Raises:
        ConfigError: the folder holds no voice.
        ModelError: the voice cannot be loaded.
        """
        self.folder = Path(model_dir)
        if not all((self.folder / name).is_file() for name in (_WEIGHTS, _CONFIG)):
            raise ConfigError(f"--model_dir {model_dir} holds no voice: give a folder that train_vits wrote.")
        self._lock = threading.Lock()
        self._unusable: tuple[tuple[int, int, int], ...] | None = None
        self._load()

    @property
    def rate_hz(self) -> int:
        """Samples in a second."""
        return self._voice.sampling_rate

    @property
    def model(self) -> str:
        """SHA-256 of the weights that speak."""
        return self._model

    def refresh(self) -> bool:
        """Loads the voice again where its folder has another one now; whether it did.

        Raises:
            ModelError: the new one cannot be loaded; the old one goes on speaking.
        """
        with self._lock:
            return self._refresh()

    def speak(self, text: str, seed: int) -> SpokenText:
        """Says ``text`` with the newest voice.

        Raises:
            DataError: the voice knows no character of the text.
            ModelError: there is a new voice, and it cannot be loaded.
        """
        with self._lock:
            self._refresh()
            unknown = unknown_characters(self._voice.tokenizer, text)
            samples = self._voice.synthesize(text, SynthesisOptions(seed=seed))
            return SpokenText(text, seed, self._model, samples, self.rate_hz, unknown)

    def picture(self, sounds: Mapping[str, NDArray[np.float32]]) -> bytes:
        """Mel spectrograms of samples, (T,) each and by title, one below the other, as a PNG."""
        spec = audio_spec(self._voice.model.config)
        mels = {}
        for title, samples in sounds.items():
            shortest = spec.minimum_frames * spec.hop
            waveform = torch.from_numpy(np.pad(samples, (0, max(0, shortest - len(samples)))))[None]
            magnitude = spectrogram(waveform, torch.tensor([spec.frames(waveform.shape[1])]), spec)
            mels[title] = log_mel(magnitude, spec)[0].numpy()
        content = io.BytesIO()
        mel_picture(mels, spec.hop / spec.sampling_rate, content, _PICTURE_INCHES)
        return content.getvalue()

    def _refresh(self) -> bool:
        found = self._signature()
        if found in (None, self._loaded, self._unusable):  # None: it is being replaced just now
            return False
        self._unusable = found  # so that it is tried, and complained of, once
        self._load()
        return True

    def _load(self) -> None:
        signature = self._signature()
        voice = Voice(str(self.folder))
        for weights in (*voice.model.parameters(), *voice.model.buffers()):
            weights.data = weights.data.clone()  # out of the mapped file: who overwrites that would end this process
        self._model = sha256(self.folder / _WEIGHTS)
        self._voice, self._loaded = voice, signature
        logger.info("the voice in %s speaks: %s", self.folder, self._model[:12])

    def _signature(self) -> tuple[tuple[int, int, int], ...] | None:
        try:
            found = [(self.folder / name).stat() for name in (_WEIGHTS, _CONFIG)]
        except FileNotFoundError:
            return None
        return tuple((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in found)
