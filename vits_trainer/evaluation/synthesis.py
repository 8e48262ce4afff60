"""Speech synthesis for texts of any length: split into sentences, synthesized one by one, and joined without clicks."""

import difflib
import io
import logging
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile as sf
import torch
from numpy.typing import NDArray
from transformers import VitsTokenizer

from vits_trainer.config.options import SPEECH_FORMATS
from vits_trainer.data.audio import to_pcm16
from vits_trainer.distributed.launch_environment import uses_gpu
from vits_trainer.evaluation.timings import SpeechTimings, piece_timings
from vits_trainer.models.pretrained import audio_spec, clamp_token_durations, complete_speaker, load_for_inference
from vits_trainer.text.normalization import is_spoken
from vits_trainer.text.tokenizer import encode, load_tokenizer
from vits_trainer.text.vocabulary import unread_characters
from vits_trainer.utils.errors import ConfigError, DataError
from vits_trainer.utils.files import atomic_write
from vits_trainer.utils.strings import counted, join_speakers, ordinary_spaces, shown_speaker

logger = logging.getLogger(__name__)

MAX_PIECE_CHARACTERS = 200
"""About 15 s of speech, the length of training clips."""
PAUSE_S = 0.25
"""Silence between two pieces."""
FADE_S = 0.005
"""Raised-cosine fade at both edges of each piece."""

_CLOSING = r"[\"'”’»›)\]}）」』】》]*"
_SENTENCE_END = re.compile(
    # Marks that end a sentence anywhere: Chinese, Arabic, Indic, Armenian, Ethiopic, Khmer.
    rf"[.!?…]*[。｡！？؟۔।॥։።፧។][.!?…。｡！？؟۔।॥։።፧។]*{_CLOSING}"
    # Marks that end it only before white space (not 3.5); a full stop also not after a single letter (not J. Bach).
    rf"|(?:(?<!\b[^\W\d_])\.|[!?…])[.!?…]*{_CLOSING}(?=\s|$)"
)
_CLAUSE_END = re.compile(r"[,;:](?=\s)|[،؛、，；：]|\s[–—](?=\s)")
_WHITE_SPACE = re.compile(r"\s+")
_WRITE_SAMPLES = 2**16
"""Samples per write: libsndfile's Vorbis encoder keeps each on the stack, and crashes on minutes of audio."""


@dataclass(frozen=True)
class SynthesisOptions:
    """Options of synthesis; None uses the voice's own value."""

    speaker: str | None = None
    """Name or id; None is the first speaker."""
    speaking_rate: float | None = None
    """Greater than 0; 2 is twice as fast."""
    noise_scale: float | None = None
    """Noise scale of the prior, 0 or more."""
    noise_scale_duration: float | None = None
    """Noise scale of the duration predictor, 0 or more."""
    seed: int = 1234
    """0 or more."""


DEFAULT_OPTIONS = SynthesisOptions()


class Speech(NamedTuple):
    """Synthesized speech."""

    samples: NDArray[np.float32]
    """(T,), full scale at 1."""
    sampling_rate: int
    """In Hz."""
    timings: SpeechTimings
    """Of its sentences, words and tokens."""

    def save(self, path: str | Path) -> None:
        """Writes an audio file in the format of its suffix: .wav, .flac, .ogg or .mp3."""
        write_speech(Path(path), self.samples, self.sampling_rate)


class SpokenPiece(NamedTuple):
    """Speech of one piece of a text, for :func:`join` and :func:`join_timings`."""

    samples: NDArray[np.float32]
    """(T,), full scale at 1."""
    timings: SpeechTimings
    """From the start of the piece."""


class Voice:
    """A VITS voice for inference: float32, in eval mode, on the GPU if there is one."""

    def __init__(self, name_or_dir: str) -> None:
        """Loads the voice from a local folder or the Hub.

        Raises:
            ModelError: it cannot be found or read, is not a VITS voice, or its weights do not match or are NaN or Inf.
        """
        self.name = name_or_dir
        self.model = load_for_inference(name_or_dir).to("cuda" if uses_gpu(os.environ) else "cpu")
        self.tokenizer = load_tokenizer(name_or_dir)
        self.sampling_rate: int = self.model.config.sampling_rate

    @classmethod
    def load(cls, name_or_dir: str | Path) -> "Voice":
        """Loads a voice from a local folder or the Hub; raises :class:`ModelError` if it is not a VITS voice."""
        return cls(str(name_or_dir))

    def speak(
        self,
        text: str,
        *,
        speaker: str | None = None,
        speaking_rate: float | None = None,
        noise_scale: float | None = None,
        noise_scale_duration: float | None = None,
        seed: int = DEFAULT_OPTIONS.seed,
    ) -> Speech:
        """Synthesizes ``text`` of any length; the arguments are those of :class:`SynthesisOptions`.

        The speaker may also be the beginning of one name.

        Raises:
            ConfigError: the voice does not have the speaker.
            DataError: the vocabulary has no character of the text.
        """
        speaker = self.full_speaker_name(speaker)
        options = SynthesisOptions(speaker, speaking_rate, noise_scale, noise_scale_duration, seed)
        pieces = list(self.speak_pieces(text, options))
        samples = join([piece.samples for piece in pieces], self.sampling_rate)
        return Speech(samples, self.sampling_rate, join_timings(pieces, self.sampling_rate))

    def synthesize(self, text: str, options: SynthesisOptions = DEFAULT_OPTIONS) -> NDArray[np.float32]:
        """Synthesizes ``text``: samples, (T,), full scale at 1. Raises the errors of :meth:`synthesize_pieces`."""
        return join(list(self.synthesize_pieces(text, options)), self.sampling_rate)

    def synthesize_pieces(
        self, text: str, options: SynthesisOptions = DEFAULT_OPTIONS
    ) -> Iterator[NDArray[np.float32]]:
        """Synthesizes ``text`` lazily, sentence by sentence: yields samples, (T,), for :func:`join`.

        Raises the errors of :meth:`speak_pieces`.
        """
        return (piece.samples for piece in self.speak_pieces(text, options))

    def speak_pieces(self, text: str, options: SynthesisOptions = DEFAULT_OPTIONS) -> Iterator[SpokenPiece]:
        """Synthesizes ``text`` lazily, sentence by sentence.

        The noise of each piece depends only on the seed and the piece's index, not on earlier pieces. The caller's
        random state is not changed.

        Raises:
            ConfigError: the voice does not have the speaker.
            DataError: the vocabulary has no character of the text.
        """
        speaker_id = self.speaker_id(options.speaker)
        for index, (piece, token_ids) in enumerate(self._encoded_pieces(text)):
            samples, token_s = self._synthesize_tokens(token_ids, speaker_id, options, index)
            yield SpokenPiece(samples, piece_timings(self.tokenizer, piece, token_ids, token_s))

    def speaker_id(self, speaker: str | None) -> int | None:
        """Returns the id of a speaker, given by name or id (None is the first). None for a single-speaker voice.

        Raises:
            ConfigError: the voice does not have the speaker.
        """
        count = self.model.config.num_speakers
        if count <= 1:
            if speaker is None:
                return None
            raise ConfigError(f"{self.name} has a single speaker: omit the speaker {speaker}.")
        names: list[str] = getattr(self.model.config, "speakers", None) or []
        if speaker is None:
            return 0
        if speaker in names:
            return names.index(speaker)
        if speaker.isdecimal() and int(speaker) < count:
            return int(speaker)
        near = difflib.get_close_matches(speaker, names, n=1, cutoff=0.5)
        hint = f"did you mean {shown_speaker(near[0])}? Give" if near else "give"
        known = f", or a name: {join_speakers(names)}." if names else "."
        raise ConfigError(
            f"{self.name}: no speaker {shown_speaker(speaker)}: {hint} a number from 0 to {count - 1}{known}"
        )

    def full_speaker_name(self, speaker: str | None) -> str | None:
        """Returns the name of the only speaker that begins with ``speaker``; else ``speaker`` itself, also an id.

        Raises:
            ConfigError: several names begin with it.
        """
        names, count = getattr(self.model.config, "speakers", None) or [], self.model.config.num_speakers
        if not speaker or count <= 1 or (speaker.isdecimal() and int(speaker) < count):
            return speaker
        return complete_speaker(self.name, names, speaker)

    def _encoded_pieces(self, text: str) -> list[tuple[str, NDArray[np.int64]]]:
        """Returns each piece that has known characters, and its token ids, (S,)."""
        pieces = [piece for piece in split_sentences(text) if any(map(is_spoken, piece))]
        if not pieces:
            raise DataError("There is nothing to say: the text has no letters, digits or symbols.")
        encoded = [(piece, encode(self.tokenizer, piece)) for piece in pieces]
        known = [(piece, ids) for piece, ids in encoded if _has_known_tokens(self.tokenizer, ids)]
        unknown = unread_characters(self.tokenizer, pieces)
        if not known:
            raise DataError(
                f"{self.name} knows no character of the text ({unknown}). Write it in the voice's script, numbers and "
                "symbols as words."
            )
        lost = len(pieces) - len(known)
        whole = f", and with them {lost} of {counted(len(pieces), 'sentence')}" if lost else ""
        if unknown or lost:
            logger.warning(
                "%s does not know %s: skipped%s. Write numbers and symbols as words.", self.name, unknown, whole
            )
        return known

    @torch.inference_mode()
    def _synthesize_tokens(
        self, token_ids: NDArray[np.int64], speaker_id: int | None, options: SynthesisOptions, index: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Returns samples, (T,), and the duration of each token in seconds, (S,)."""
        model, config = self.model, self.model.config
        model.noise_scale = config.noise_scale if options.noise_scale is None else options.noise_scale
        model.noise_scale_duration = (
            config.noise_scale_duration if options.noise_scale_duration is None else options.noise_scale_duration
        )
        tokens = torch.from_numpy(token_ids)[None].to(model.device)  # (1, S)
        with (
            clamp_token_durations(model) as log_durations,
            torch.random.fork_rng(devices=range(torch.cuda.device_count())),
        ):
            torch.manual_seed(int(np.random.SeedSequence((options.seed, index)).generate_state(1)[0]))
            waveform = model(tokens, speaker_id=speaker_id, speaking_rate=options.speaking_rate).waveform  # (1, T)
        samples: NDArray[np.float32] = waveform[0].float().cpu().numpy()
        length_scale = 1 / (config.speaking_rate if options.speaking_rate is None else options.speaking_rate)
        frames = torch.ceil(torch.exp(log_durations[-1][0, 0]) * length_scale)
        token_s: NDArray[np.float64] = frames.double().cpu().numpy() * audio_spec(config).hop / self.sampling_rate
        return samples, token_s


def split_sentences(text: str, max_characters: int = MAX_PIECE_CHARACTERS) -> list[str]:
    """Splits ``text`` at line and sentence ends, and longer sentences at commas, else white space, else anywhere.

    Returns:
        Pieces of 1 to ``max_characters`` characters, stripped, with spaces as their only white space; no-break spaces
        remain between digits.
    """
    pieces: list[str] = []
    for line in map(ordinary_spaces, text.splitlines()):
        ends = [match.end() for match in _SENTENCE_END.finditer(line)]
        for start, end in zip([0, *ends], [*ends, len(line)], strict=True):
            pieces += _split_long(line[start:end].strip(), max_characters)
    return pieces


def join(pieces: Sequence[NDArray[np.float32]], rate_hz: int) -> NDArray[np.float32]:
    """Joins pieces of speech, (T,) each, with ``PAUSE_S`` of silence between them; fades both edges of each."""
    silence = np.zeros(round(PAUSE_S * rate_hz), dtype=np.float32)
    parts = [part for piece in pieces for part in (_fade(piece, round(FADE_S * rate_hz)), silence)]
    return np.concatenate(parts[:-1])


def join_timings(pieces: Sequence[SpokenPiece], rate_hz: int) -> SpeechTimings:
    """Joins the timings of pieces that :func:`join` joins."""
    joined, start_s = SpeechTimings(), 0.0
    for piece in pieces:
        joined += piece.timings.shifted(start_s)
        start_s += (len(piece.samples) + round(PAUSE_S * rate_hz)) / rate_hz
    return joined


def write_speech(path: Path, samples: NDArray[np.float32], rate_hz: int) -> None:
    """Writes ``samples``, (T,), atomically, in the format of the file name's suffix.

    Raises:
        ConfigError: the suffix is unknown, the format does not support the rate, or the file cannot be written.
    """
    kind = SPEECH_FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ConfigError(f"{path}: the name must end with {', '.join(SPEECH_FORMATS)}.")
    is_lossless = kind in ("WAV", "FLAC")
    content = io.BytesIO()
    try:
        with sf.SoundFile(
            content, "w", rate_hz, channels=1, format=kind, subtype="PCM_16" if is_lossless else None
        ) as recording:
            for start in range(0, len(samples), _WRITE_SAMPLES):
                block = samples[start : start + _WRITE_SAMPLES]
                recording.write(to_pcm16(block) if is_lossless else block)
    except sf.LibsndfileError as error:
        raise ConfigError(f"{path}: {error.error_string} The voice has {rate_hz} Hz: use .wav or .flac.") from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content.getvalue())
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}): choose another --output.") from error


def _has_known_tokens(tokenizer: VitsTokenizer, token_ids: NDArray[np.int64]) -> bool:
    """Returns whether any token is known. Tokenizers without normalization map unknown characters to <unk>."""
    characters = token_ids[1::2] if tokenizer.add_blank else token_ids  # a blank's id may also be a letter's
    return bool((characters != tokenizer.unk_token_id).any())


def _split_long(sentence: str, max_characters: int) -> Iterator[str]:
    while len(sentence) > max_characters:
        head = sentence[: max_characters + 1]  # one more, to see what follows the last character that fits
        clauses = [m.end() for m in _CLAUSE_END.finditer(head) if max_characters // 2 <= m.end() <= max_characters]
        spaces = [match.start() for match in _WHITE_SPACE.finditer(head)]
        cut = (clauses or spaces or [_cut_anywhere(sentence, max_characters)])[-1]
        yield sentence[:cut].rstrip()
        sentence = sentence[cut:].lstrip()
    if sentence:
        yield sentence


def _cut_anywhere(sentence: str, max_characters: int) -> int:
    """Returns the last cut that does not separate a letter from its combining marks."""
    for cut in range(max_characters, 0, -1):
        if not unicodedata.category(sentence[cut]).startswith("M"):
            return cut
    return max_characters


def _fade(piece: NDArray[np.float32], fade_samples: int) -> NDArray[np.float32]:
    length = min(fade_samples, len(piece) // 2)
    ramp = (0.5 - 0.5 * np.cos(np.pi * np.arange(length) / max(length, 1))).astype(np.float32)
    envelope = np.ones(len(piece), dtype=np.float32)
    envelope[:length] = ramp
    envelope[len(piece) - length :] = ramp[::-1]
    return piece * envelope
