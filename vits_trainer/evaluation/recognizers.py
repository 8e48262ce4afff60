"""Speech recognizers: Whisper by faster-whisper, models of transformers, PocketSphinx.

``auto`` uses only what is installed. A name on the Hub is downloaded, as it is the user who gives it.
"""

import importlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vits_trainer.config.options import AUTO, POCKETSPHINX, WHISPER
from vits_trainer.config.parser import unknown_name_message
from vits_trainer.data.audio import to_pcm16
from vits_trainer.evaluation.optional_packages import MODEL_RATE_HZ, is_installed, load_optional_model, load_package
from vits_trainer.text.languages import is_english
from vits_trainer.utils.errors import ConfigError
from vits_trainer.utils.installation import install_command

logger = logging.getLogger(__name__)

Samples = NDArray[np.float32]
_WHISPER_PREFIX = "whisper-"


@dataclass(frozen=True)
class Recognizer:
    """Speech recognition by one model."""

    name: str
    transcribe: Callable[[Samples], str]
    """Returns the words of speech, (T,), with full scale at 1, at :data:`MODEL_RATE_HZ`."""


def choose_recognizer(asr: str, language: str | None) -> str | None:
    """Returns the recognizer's name; None if ``asr`` is ``auto`` and none knows the language.

    Args:
        asr: value of ``--asr``.
        language: of the texts, as named by voices (None = unknown: taken to be English).

    Raises:
        ConfigError: the recognizer knows English only, and the language is another.
    """
    foreign = language is not None and not is_english(language)
    if asr == AUTO:
        return None if foreign else WHISPER if has_whisper() else POCKETSPHINX
    if foreign and knows_only_english(asr):
        raise ConfigError(
            f"--asr {asr}: knows English only, and the voice speaks {language}. Give a multilingual model "
            "(such as whisper-small, downloaded from the Hub), or omit cer from the scores."
        )
    return asr


class Judge(NamedTuple):
    """The recognizer whose error rates decide which of two voices is better."""

    recognizer: str | None
    """Its name; None if there is none."""
    reason: str = ""
    """Why there is none."""


def choose_judge(asr: str, language: str | None) -> Judge:
    """Chooses the recognizer that judges voices. ``auto`` is whisper-tiny.en, and only if the voice speaks English.

    Args:
        asr: value of ``--asr``.
        language: as named by voices (None = unknown).
    """
    needs_english = asr == AUTO or knows_only_english(asr)
    if needs_english and language is None:
        return Judge(None, "the voice names no language (language in its tokenizer_config.json)")
    if needs_english and not is_english(language):
        return Judge(None, f"the voice speaks {language}, for which --asr {asr} has no recognizer")
    if asr != AUTO:
        return Judge(asr)
    if not (has_whisper() and is_installed("cer")):
        return Judge(None, f"{WHISPER} is not installed ({install_command('asr')})")
    return Judge(WHISPER)


def knows_only_english(recognizer: str) -> bool:
    """Returns whether a recognizer is known to know English only, by its name."""
    return recognizer == POCKETSPHINX or (recognizer.startswith(_WHISPER_PREFIX) and recognizer.endswith(".en"))


def has_whisper() -> bool:
    """Returns whether whisper-tiny.en is installed, with its weights."""
    return is_installed("faster-whisper") and is_installed(WHISPER)


def load_recognizer(name: str, flag: str = "--asr") -> Recognizer:
    """Loads a recognizer.

    Args:
        name: pocketsphinx, whisper-<size of faster-whisper>, or a Hub name or folder of a model of transformers or
            faster-whisper.
        flag: that gives the name, for error messages.

    Raises:
        ConfigError: the name is unknown, a package is not installed, or the model cannot be loaded.
    """
    if name == POCKETSPHINX:
        return Recognizer(name, _load_pocketsphinx())
    if name == WHISPER:
        load_package("faster-whisper")
        return Recognizer(name, _load_faster_whisper(name, flag, str(load_package(WHISPER).get_model_path())))
    if not Path(name).is_dir() and "/" not in name:
        return Recognizer(name, _load_faster_whisper(name, flag, _whisper_size(name, flag)))
    is_converted = load_optional_model(f"{flag} {name}", lambda: "suppress_ids" in _model_config(name))
    return Recognizer(name, (_load_faster_whisper if is_converted else _load_transformers)(name, flag, name))


def _whisper_size(name: str, flag: str) -> str:
    sizes: Sequence[str] = ["tiny.en"]
    if name.startswith(_WHISPER_PREFIX) or is_installed("faster-whisper"):
        sizes = load_package("faster-whisper").available_models()
    known = [POCKETSPHINX, *(_WHISPER_PREFIX + size for size in sizes)]
    if name not in known:
        raise ConfigError(
            f"{flag}: {unknown_name_message('recognizer', name, known).rstrip('.?')}"
            " (or the folder or Hub name, owner/name, of a model)?"
        )
    return name.removeprefix(_WHISPER_PREFIX)


def _model_config(name: str) -> dict[str, Any]:
    """Returns config.json of a folder or a Hub model; that of CTranslate2 (faster-whisper) has no ``model_type``."""
    config: dict[str, Any] = importlib.import_module("transformers").PretrainedConfig.get_config_dict(name)[0]
    return config


def _load_pocketsphinx() -> Callable[[Samples], str]:
    decoder = load_package(POCKETSPHINX).Decoder(samprate=MODEL_RATE_HZ, loglevel="FATAL")

    def transcribe(samples: Samples) -> str:
        decoder.reinit_feat()  # resets the loudness estimate, so that results do not depend on earlier clips
        decoder.start_utt()
        decoder.process_raw(to_pcm16(samples).tobytes(), no_search=False, full_utt=True)
        decoder.end_utt()
        hypothesis = decoder.hyp()
        return "" if hypothesis is None else str(hypothesis.hypstr)

    return transcribe


def _load_faster_whisper(name: str, flag: str, model: str) -> Callable[[Samples], str]:
    """Loads a Whisper model on the CPU, in int8: the same transcripts with and without a GPU."""
    package = load_package("faster-whisper")
    whisper = load_optional_model(
        f"{flag} {name}", lambda: package.WhisperModel(model, device="cpu", compute_type="int8")
    )

    def transcribe(samples: Samples) -> str:
        # At temperature 0 the decoding is deterministic; faster-whisper's default also draws samples.
        segments, _ = whisper.transcribe(
            samples, temperature=0.0, without_timestamps=True, condition_on_previous_text=False
        )
        return " ".join(segment.text.strip() for segment in segments)

    return transcribe


def _load_transformers(name: str, flag: str, model: str) -> Callable[[Samples], str]:
    pipeline = importlib.import_module("transformers").pipeline
    recognize = load_optional_model(
        f"{flag} {name}", lambda: pipeline("automatic-speech-recognition", model=model, trust_remote_code=False)
    )
    return lambda samples: str(recognize({"raw": samples, "sampling_rate": MODEL_RATE_HZ})["text"])
