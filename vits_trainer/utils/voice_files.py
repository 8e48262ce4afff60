"""Finds the files of a voice in a local folder or on the Hub."""

from pathlib import Path


def find_voice_file(name_or_dir: str, name: str) -> Path | None:
    """Returns the local path of a voice's file, downloaded from the Hub if necessary; None if the voice has none.

    Raises:
        OSError: ``name_or_dir`` is neither a folder nor a name on the Hub, or the Hub cannot be reached.
    """
    folder = Path(name_or_dir)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    from transformers.utils import cached_file  # noqa: PLC0415 - start-up

    path = cached_file(name_or_dir, name, _raise_exceptions_for_missing_entries=False)
    return None if path is None else Path(path)
