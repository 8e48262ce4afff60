"""Every error this package raises on purpose. Each message says what is wrong, where, and what to do about it."""


class VitsTrainerError(Exception):
    """Base of all errors of this package; ``exit_code`` is what the command line ends with."""

    exit_code = 1


class ConfigError(VitsTrainerError):
    """A flag, a configuration file or the launcher asks for something that cannot be."""

    exit_code = 2


class DataError(VitsTrainerError):
    """The data set, or what the user says of it, cannot be used."""

    exit_code = 2


class ModelError(VitsTrainerError):
    """The model to start from is missing, damaged or of another kind."""

    exit_code = 2


class CheckpointError(VitsTrainerError):
    """A checkpoint is missing, damaged, in the way, or of another run."""

    exit_code = 2


class TooManyRejectedError(VitsTrainerError):
    """More clips than allowed, or all of them, cannot be used: the data no longer is what ``prepare_data`` checked."""


class UnreadableShardError(VitsTrainerError):
    """A shard of a stream cannot be read, however often it was tried; names it."""


class AccountingError(VitsTrainerError):
    """A clip was taken twice or left out: a bug of this package."""


class NonFiniteLossError(VitsTrainerError):
    """Update after update came to no finite number."""


class NothingTrainedError(VitsTrainerError):
    """No update of the run reached the weights."""


class UnequalRanksError(VitsTrainerError):
    """The ranks of a run are about to train on other data, from other weights, or in other ways."""

    exit_code = 2


class RefusedVoiceError(VitsTrainerError):
    """A voice that learnt corrections is not better than the one before, which stays in its place."""


class SavingError(VitsTrainerError):
    """A checkpoint could not be written; those before are as they were."""


class PublishingError(VitsTrainerError):
    """A voice could not be sent to the Hub; it is where it was exported to."""


class OutOfMemoryError(VitsTrainerError):
    """A batch does not fit into the device's memory."""


class DivergedRanksError(VitsTrainerError):
    """The ranks of a run hold different weights."""


class OtherRankError(VitsTrainerError):
    """Another process of this run has failed, died, or does not keep up; names it."""


class InstallationError(VitsTrainerError):
    """Packages that do not go together."""


class CheckFailedError(VitsTrainerError):
    """``vits-trainer check`` found something wrong."""


def require(condition: bool, message: str) -> None:
    """Raises :class:`ConfigError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(message)
