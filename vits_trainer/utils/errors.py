"""Exceptions of this package. Each message states what is wrong, where, and the remedy."""

import errno


class VitsTrainerError(Exception):
    """Base class of all exceptions of this package. ``exit_code`` is the exit code of the command."""

    exit_code = 1


class ConfigError(VitsTrainerError):
    """A flag, a configuration file or the launcher has an invalid setting."""

    exit_code = 2


class DataError(VitsTrainerError):
    """The dataset, or a setting that describes it, is invalid."""

    exit_code = 2


class ModelError(VitsTrainerError):
    """A voice is missing, damaged or of another kind."""

    exit_code = 2


class CheckpointError(VitsTrainerError):
    """A checkpoint is missing, damaged, or belongs to another run."""

    exit_code = 2


class TooManyRejectedError(VitsTrainerError):
    """More clips than allowed, or all, are unusable: the data changed since ``prepare_data`` checked it."""


class UnreadableShardError(VitsTrainerError):
    """A streamed shard cannot be read after all retries. The message names it."""


class AccountingError(VitsTrainerError):
    """A clip was used too often or not at all: a bug of this package."""


class NonFiniteLossError(VitsTrainerError):
    """Too many consecutive updates had NaN or Inf losses or gradients."""


class NothingTrainedError(VitsTrainerError):
    """No update of the run was applied to the weights."""


class UnequalRanksError(VitsTrainerError):
    """The ranks of a run differ in data, initial weights or settings."""

    exit_code = 2


class RefusedVoiceError(VitsTrainerError):
    """A voice trained on corrections is not better than the previous one, which stays in use."""


class SavingError(VitsTrainerError):
    """A checkpoint could not be written. Earlier checkpoints are intact."""


class PublishingError(VitsTrainerError):
    """A voice could not be uploaded to the Hub. The exported voice is intact."""


class OutOfMemoryError(VitsTrainerError):
    """A batch does not fit into device memory."""


class DivergedRanksError(VitsTrainerError):
    """The ranks of a run have different weights."""


class OtherRankError(VitsTrainerError):
    """Another rank of this run failed, died or does not respond. The message names it."""


class InstallationError(VitsTrainerError):
    """Installed packages are incompatible or missing."""


class CheckFailedError(VitsTrainerError):
    """A check of ``vits-trainer check`` failed."""


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, says that a disk, a quota or a limit of file sizes is full.

    Also errors of libraries in Rust and C++, which keep only the text of the system's error.
    """
    while error is not None:
        if getattr(error, "errno", None) in _NO_SPACE or "No space left on device" in str(error):
            return True
        error = error.__cause__
    return False


def disk_full_message(error: BaseException) -> str:
    """Returns one line for a full disk: where, and the remedy."""
    file = getattr(error, "filename", None)
    what = " ".join(str(error).split())[:300]
    return f"{file or 'A file'} could not be written: {what}. Free disk space; existing files are complete."


def require(condition: bool, message: str) -> None:
    """Raises :class:`ConfigError` with ``message`` unless ``condition`` is true."""
    if not condition:
        raise ConfigError(message)
