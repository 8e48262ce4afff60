"""The served voice: loaded once and reloaded when its directory has been replaced."""

import io
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vits_trainer.evaluation.synthesis import SynthesisOptions, Voice
from vits_trainer.feedback.speakers import correctable_speakers
from vits_trainer.models.pretrained import audio_spec
from vits_trainer.models.spectrogram import log_mel, spectrogram
from vits_trainer.text.vocabulary import unread_characters
from vits_trainer.tracking.plots import mel_picture
from vits_trainer.utils.errors import ConfigError
from vits_trainer.utils.files import sha256

logger = logging.getLogger(__name__)

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_PLOT_WIDTH_INCHES = 5.8


@dataclass(frozen=True)
class SpokenText:
    """A text and the speech generated for it."""

    text: str
    seed: int
    model: str
    """SHA-256 of the weights."""
    samples: NDArray[np.float32]
    """(T,), full scale 1."""
    rate_hz: int
    speaker: str | None
    """Of a voice with several."""
    unknown: str
    """Characters of the text that are not in the vocabulary and were skipped."""


class ServedVoice:
    """A voice in a directory that can be replaced at any time. Thread-safe; generates one text at a time."""

    def __init__(self, model_dir: str) -> None:
        """Loads the voice.

        Raises:
            ConfigError: the directory contains no voice, or one whose speakers have no names.
            ModelError: the voice cannot be loaded.
        """
        self.folder = Path(model_dir)
        if not all((self.folder / name).is_file() for name in (_WEIGHTS, _CONFIG)):
            raise ConfigError(f"--model_dir {model_dir} contains no voice. Pass a directory written by train_vits.")
        self._lock = threading.Lock()
        self._unusable: tuple[tuple[int, int, int], ...] | None = None
        self._load()
        self.speakers = correctable_speakers(model_dir, self._voice.model.config)
        """Names; empty for a voice of one speaker."""

    @property
    def rate_hz(self) -> int:
        """Sampling rate."""
        return self._voice.sampling_rate

    @property
    def model(self) -> str:
        """SHA-256 of the current weights."""
        return self._model

    def refresh(self) -> bool:
        """Reloads the voice if its directory was replaced, and returns whether it was.

        Raises:
            ModelError: the new voice cannot be loaded; the previous one stays in use.
        """
        with self._lock:
            return self._refresh()

    def speak(self, text: str, seed: int, speaker: str | None = None, rate: float = 1.0) -> SpokenText:
        """Generates speech for ``text`` with the newest voice.

        Args:
            text: to speak.
            seed: of the noise.
            speaker: of a voice with several.
            rate: speaking rate as a multiple of the voice's own.

        Raises:
            ConfigError: the voice does not have the speaker.
            DataError: no character of the text is in the vocabulary.
            ModelError: a new voice cannot be loaded.
        """
        with self._lock:
            self._refresh()
            unknown = unread_characters(self._voice.tokenizer, [text])
            own_rate = self._voice.model.config.speaking_rate
            options = SynthesisOptions(speaker=speaker, speaking_rate=rate * own_rate, seed=seed)
            samples = self._voice.synthesize(text, options)
            return SpokenText(text, seed, self._model, samples, self.rate_hz, speaker, unknown)

    def plot_mels(self, sounds: Mapping[str, NDArray[np.float32]]) -> bytes:
        """Plots mel spectrograms of samples, (T,) each by title, below each other as a PNG."""
        spec = audio_spec(self._voice.model.config)
        mels = {}
        for title, samples in sounds.items():
            shortest = spec.minimum_frames * spec.hop
            waveform = torch.from_numpy(np.pad(samples, (0, max(0, shortest - len(samples)))))[None]
            magnitude = spectrogram(waveform, torch.tensor([spec.frames(waveform.shape[1])]), spec)
            mels[title] = log_mel(magnitude, spec)[0].numpy()
        content = io.BytesIO()
        mel_picture(mels, spec.hop / spec.sampling_rate, content, _PLOT_WIDTH_INCHES)
        return content.getvalue()

    def _refresh(self) -> bool:
        signature = self._signature()
        if signature in (None, self._loaded, self._unusable):  # None: being replaced right now
            return False
        self._unusable = signature  # so that a damaged voice is tried and reported only once
        self._load()
        return True

    def _load(self) -> None:
        signature = self._signature()
        voice = Voice(str(self.folder))
        for weights in (*voice.model.parameters(), *voice.model.buffers()):
            # Copies from the memory-mapped file: overwriting that file would crash this process.
            weights.data = weights.data.clone()
        self._model = sha256(self.folder / _WEIGHTS)
        self._voice, self._loaded = voice, signature
        logger.info("Loaded the voice in %s (weights %s)", self.folder, self._model[:12])

    def _signature(self) -> tuple[tuple[int, int, int], ...] | None:
        try:
            stats = [(self.folder / name).stat() for name in (_WEIGHTS, _CONFIG)]
        except FileNotFoundError:
            return None
        return tuple((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats)
