"""Finds the files of a voice in a local folder or on the Hub."""

import difflib
from pathlib import Path


def find_voice_file(name_or_dir: str, name: str) -> Path | None:
    """Returns the local path of a voice's file, downloaded from the Hub if necessary; None if the voice has none.

    With ``HF_HUB_OFFLINE``, a voice in the cache has only the files that are there.

    Raises:
        OSError: ``name_or_dir`` is neither a folder nor a name on the Hub, or the Hub cannot be reached and the file is
            not in the cache.
    """
    folder = Path(name_or_dir)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    from huggingface_hub import constants, errors, hf_hub_download  # noqa: PLC0415 - start-up

    try:
        return Path(hf_hub_download(name_or_dir, name))
    except errors.LocalEntryNotFoundError as error:
        if _is_absent_in_cache(name_or_dir, name, constants.HF_HUB_OFFLINE):
            return None
        cause = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hugging Face Hub cannot be reached"
        missing = _missing_folder(folder)
        raise OSError(f"{missing}; {cause}, and {name} is not in its cache on this machine") from error
    except errors.EntryNotFoundError:
        return None
    except errors.RepositoryNotFoundError as error:
        raise OSError(f"{_missing_folder(folder)}; no such Hub name: a private or gated one needs HF_TOKEN") from error
    except errors.HFValidationError as error:
        raise OSError(f"{_missing_folder(folder)}; no Hub name either, which is owner/name") from error


def _missing_folder(folder: Path) -> str:
    """Returns that the folder does not exist, and the name of one next to it that may be meant."""
    parent = folder.parent
    names = [path.name for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
    near = difflib.get_close_matches(folder.name, names, n=1, cutoff=0.8)
    return f"no such folder (did you mean {parent / near[0]}?)" if near else "no such folder"


def _is_absent_in_cache(voice: str, name: str, offline: bool) -> bool:
    """Whether the Hub said before that the voice lacks the file, or this is a voice of the cache, used offline."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache  # noqa: PLC0415 - start-up

    if try_to_load_from_cache(voice, name) is _CACHED_NO_EXIST:
        return True
    return offline and isinstance(try_to_load_from_cache(voice, "config.json"), str)
