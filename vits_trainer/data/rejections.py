"""The reasons to reject a clip."""

from enum import StrEnum
from typing import NamedTuple, NoReturn

from vits_trainer.utils.errors import DataError


class Reason(StrEnum):
    """Reasons to reject a clip, as written to rejected.csv and rejected.jsonl, in the order of the checks."""

    MALFORMED_ROW = "malformed-row"
    """The line or row of the table cannot be read: its number of columns or a value in it is wrong."""
    TOO_FEW_UPVOTES = "too-few-upvotes"
    """Common Voice: fewer up-votes than --min_upvotes."""
    TOO_MANY_DOWNVOTES = "too-many-downvotes"
    """Common Voice: more down-votes than --max_downvotes."""
    PATH_OUTSIDE = "path-outside"
    """The metadata refers to a file outside the data set's folder."""
    UNUSABLE_NAME = "unusable-name"
    """The file name is not UTF-8."""
    AMBIGUOUS_NAME = "ambiguous-name"
    """Several files match the name; they differ only in case or in the Unicode form of a letter."""
    MISSING_FILE = "missing-file"
    """The file does not exist, or the row has no audio."""
    DUPLICATE = "duplicate"
    """The metadata already listed the same file."""
    DROPPED = "dropped"
    """It is on the list of --drop."""
    OVERLAPPING_CUES = "overlapping-cues"
    """--segment: two subtitles are shown at the same time."""
    OUTSIDE_RECORDING = "outside-recording"
    """--segment: a subtitle is shown after the end of the recording."""
    NO_SPEECH = "no-speech"
    """--segment: the recording, or the time of a subtitle, has no speech."""
    NOT_IN_TEXT = "not-in-text"
    """--segment: speech that the text of the recording does not have."""
    UNSPOKEN_TEXT = "unspoken-text"
    """--segment: a passage of the text that no clip has."""
    EMPTY_TEXT = "empty-text"
    """The text is empty."""
    TRUNCATED_AUDIO = "truncated-audio"
    """The file does not hold all of its recording, or holds audio beyond the length that it declares."""
    UNREADABLE_AUDIO = "unreadable-audio"
    """Damaged, or in a format that libsndfile does not support."""
    UNSUPPORTED_AUDIO = "unsupported-audio"
    """More than 8 channels, a sampling rate outside 4 to 192 kHz, or fewer than 8 bits per sample."""
    EMPTY_AUDIO = "empty-audio"
    """No samples."""
    TOO_SHORT = "too-short"
    """Less than --min_duration_s, after trimming."""
    TOO_LONG = "too-long"
    """More than --max_duration_s, after trimming."""
    NON_FINITE_AUDIO = "non-finite-audio"
    """NaN or Inf samples."""
    OUT_OF_RANGE_AUDIO = "out-of-range-audio"
    """Samples beyond the range of 32-bit integers."""
    TOO_QUIET = "too-quiet"
    """Silence, a constant, or quieter than --min_loudness_dbfs."""
    LOW_CONFIDENCE = "low-confidence"
    """--segment: the text and what the recognizer hears differ too much."""
    TEXT_TOO_LONG = "text-too-long"
    """More tokens than the clip has frames: no alignment exists."""
    WRONG_RATE = "wrong-rate"
    """In training: the sampling rate differs from the voice's."""
    NO_KNOWN_CHARACTERS = "no-known-characters"
    """In training: no character of the text is in the voice's vocabulary."""


class Rejection(NamedTuple):
    """Why one clip is rejected: the reason, by which rejections are counted, and details."""

    reason: Reason
    detail: str


class RecordingError(DataError):
    """A recording cannot be used. Unlike libsndfile's errors, it can be pickled."""

    def __init__(self, rejection: Rejection) -> None:
        super().__init__(rejection)
        self.rejection = rejection

    def __str__(self) -> str:
        return f"{self.rejection.reason}: {self.rejection.detail}"


def reject(reason: Reason, detail: str) -> NoReturn:
    """Raises :class:`RecordingError` with this reason."""
    raise RecordingError(Rejection(reason, detail))
