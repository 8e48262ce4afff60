"""Whose voice a correction is, for voices of several speakers."""

from collections.abc import Sequence

from transformers import VitsConfig

from vits_trainer.feedback.replay_mix import CorrectionFiles
from vits_trainer.models.pretrained import complete_speaker, speaker_names
from vits_trainer.utils.errors import ConfigError
from vits_trainer.utils.strings import join_names, join_speakers, shown_speaker


def correctable_speakers(voice: str, config: VitsConfig) -> list[str]:
    """Returns the names by which corrections state their speaker; empty for a voice of one speaker.

    Raises:
        ConfigError: the voice stores no names, so that training could not assign the corrections.
    """
    names = speaker_names(config)
    stored: list[str] = getattr(config, "speakers", None) or []
    if len(stored) < len(names):
        raise ConfigError(
            f"{voice} has {len(names)} speakers and names {len(stored)} of them: corrections cannot be assigned. Add "
            'their names, in the order of their ids, as "speakers": [...] to its config.json.'
        )
    return names


def known_speaker(voice: str, names: Sequence[str], speaker: str) -> str:
    """Returns the name of a speaker of the voice.

    Raises:
        ConfigError: the voice does not have it.
    """
    if not names:
        raise ConfigError(f"--speaker {speaker}: {voice} has one speaker. Omit it.")
    if speaker not in names:
        raise ConfigError(f"{voice} has no speaker {shown_speaker(speaker)}. Its speakers: {join_speakers(names)}.")
    return speaker


def flag_speaker(voice: str, names: Sequence[str], speaker: str) -> str:
    """Returns the name of the speaker of a flag, which may be the beginning of one.

    Raises:
        ConfigError: the voice does not have it, or several.
    """
    return known_speaker(voice, names, complete_speaker(voice, names, speaker))


def correction_speakers(
    corrections: Sequence[CorrectionFiles], voice: str, config: VitsConfig, default: str | None
) -> dict[str, str]:
    """Returns the speaker of each correction by name; empty for a voice of one speaker.

    Args:
        corrections: of the folder.
        voice: folder or Hub name, for messages.
        config: of the voice.
        default: speaker of corrections without NAME.speaker (None = each must have one).

    Raises:
        ConfigError: a correction's speaker is missing or unknown.
    """
    names = correctable_speakers(voice, config)
    if default is not None:
        default = flag_speaker(voice, names, default)
    if not names:
        return {}
    complete = [one for one in corrections if any(file.suffix.casefold() == ".txt" for file in one.files)]
    unassigned = [one.name for one in complete if not (one.speaker or default)]
    if unassigned:
        raise ConfigError(
            f"{voice} has {len(names)} speakers, and no speaker is given for the corrections {join_names(unassigned)}. "
            f"Set --speaker for all of them, or write its name to NAME.speaker. Speakers: {join_speakers(names)}."
        )
    return {one.name: known_speaker(voice, names, one.speaker or default or "") for one in complete}
