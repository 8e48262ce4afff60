"""When each sentence, word and token of synthesized speech is heard, as JSON or as subtitles (SubRip)."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vits_trainer.config.options import TIMING_FORMATS
from vits_trainer.text.tokenizer import VoiceTokenizer
from vits_trainer.utils.errors import ConfigError
from vits_trainer.utils.files import atomic_write

MAX_CUE_CHARACTERS = 84
"""Two lines of a subtitle."""


class Timing(NamedTuple):
    """When a part of the text is heard."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class SpeechTimings:
    """Times from the start of the speech, in the order of the text."""

    sentences: tuple[Timing, ...] = ()
    """Pieces that were synthesized one by one, as in the text."""
    words: tuple[Timing, ...] = ()
    """As in the text, or as the voice reads them if it reads another number of words."""
    tokens: tuple[Timing, ...] = ()
    """Letters or phonemes. The time of a blank belongs to the token before it, the first one's to the token after."""

    def shifted(self, seconds: float) -> "SpeechTimings":
        """Returns the timings ``seconds`` later."""
        return SpeechTimings(*(_shifted(parts, seconds) for parts in vars(self).values()))

    def __add__(self, other: "SpeechTimings") -> "SpeechTimings":
        """Appends the timings of later speech."""
        return SpeechTimings(self.sentences + other.sentences, self.words + other.words, self.tokens + other.tokens)

    def save(self, path: str | Path) -> None:
        """Writes a .json file, or subtitles as .srt.

        Raises:
            ConfigError: the suffix is another one, or the file cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() not in TIMING_FORMATS:
            raise ConfigError(f"{path}: the name must end with {' or '.join(TIMING_FORMATS)}.")
        content = _subtitles(self) if path.suffix.lower() == ".srt" else _json(self)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, content.encode())
        except OSError as error:
            raise ConfigError(f"{path} cannot be written ({error.strerror}): choose another --timings.") from error


def piece_timings(
    tokenizer: VoiceTokenizer, piece: str, token_ids: NDArray[np.int64], token_s: NDArray[np.float64]
) -> SpeechTimings:
    """Returns the timings of one piece of text.

    Args:
        tokenizer: of the voice.
        piece: as in the text.
        token_ids: (S,) including blanks.
        token_s: (S,) duration of each token in seconds.
    """
    ends = np.cumsum(token_s)
    has_blanks = tokenizer.add_blank and len(token_ids) % 2 == 1
    spoken = range(1, len(token_ids), 2) if has_blanks else range(len(token_ids))
    tokens = []
    start_s = 0.0
    for index in spoken:
        end_s = float(ends[index + 1 if has_blanks else index])
        tokens.append(Timing(str(tokenizer.decoder.get(int(token_ids[index]), "")), start_s, end_s))
        start_s = end_s
    total_s = float(ends[-1])
    return SpeechTimings((Timing(piece, 0.0, total_s),), tuple(_words(tokenizer, piece, tokens)), tuple(tokens))


def _words(tokenizer: VoiceTokenizer, piece: str, tokens: Sequence[Timing]) -> Iterator[Timing]:
    """Yields the words of a piece: those that the voice reads, named as in the text if each is read by itself."""
    read: list[list[Timing]] = [[]]
    for token in tokens:
        if token.text.isspace():
            read.append([])
        else:
            read[-1].append(token)
    groups = [group for group in read if group]
    written = piece.split()
    counts = [len(tokenizer.resolve(word)[0].split()) for word in written]
    if sum(counts) != len(groups):
        yield from (Timing("".join(token.text for token in group), group[0][1], group[-1][2]) for group in groups)
        return
    start = 0
    for word, count in zip(written, counts, strict=True):
        if count:
            yield Timing(word, groups[start][0].start_s, groups[start + count - 1][-1].end_s)
        start += count


def _shifted(timings: tuple[Timing, ...], seconds: float) -> tuple[Timing, ...]:
    return tuple(timing._replace(start_s=timing.start_s + seconds, end_s=timing.end_s + seconds) for timing in timings)


def _json(timings: SpeechTimings) -> str:
    rounded = {
        kind: [{"text": text, "start_s": round(start_s, 4), "end_s": round(end_s, 4)} for text, start_s, end_s in parts]
        for kind, parts in vars(timings).items()
    }
    return json.dumps(rounded, ensure_ascii=False, indent=1) + "\n"


def _subtitles(timings: SpeechTimings) -> str:
    cues = [cue for sentence in timings.sentences for cue in _cues(sentence, timings.words)]
    return "".join(
        f"{number}\n{_clock(cue.start_s)} --> {_clock(cue.end_s)}\n{cue.text}\n\n"
        for number, cue in enumerate(cues, start=1)
    )


def _cues(sentence: Timing, words: Sequence[Timing]) -> Iterator[Timing]:
    """Yields a sentence in parts of at most two lines, if its words are known as in the text."""
    inside = [word for word in words if sentence.start_s <= word.start_s < sentence.end_s]
    if len(sentence.text) <= MAX_CUE_CHARACTERS or [word.text for word in inside] != sentence.text.split():
        yield sentence
        return
    cue = inside[0]
    for word in inside[1:]:
        if len(cue.text) + 1 + len(word.text) > MAX_CUE_CHARACTERS:
            yield cue
            cue = word
        else:
            cue = Timing(f"{cue.text} {word.text}", cue.start_s, word.end_s)
    yield cue


def _clock(seconds: float) -> str:
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02},{rest % 1000:03}"
