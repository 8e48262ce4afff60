"""Upload of shards to the Hugging Face Hub, as a private data set that can be trained on without preparation."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, errors

from vits_trainer.data.shards import FOLDER, MANIFEST, Manifest, verify_shards
from vits_trainer.utils.errors import DataError
from vits_trainer.utils.strings import counted

logger = logging.getLogger(__name__)

CARD = "README.md"
_FILES = (MANIFEST, "dataset.json", "rejected.csv", CARD)
_CARD = f"""---
task_categories: [text-to-speech]
configs:
- config_name: default
  data_files: {FOLDER}/*.parquet
---
Speech for VITS, prepared by vits_trainer: dataset.json describes the source and the settings, {MANIFEST} the shards.
"""
Result = TypeVar("Result")


def open_repository(name: str) -> None:
    """Creates the private data set ``name`` unless it exists, so that missing write access shows before hours of work.

    Raises:
        DataError: the Hub cannot be reached, or refuses access.
    """
    _call_hub(name, lambda: HfApi().create_repo(name, repo_type="dataset", private=True, exist_ok=True))


def push_dataset(folder: Path, name: str) -> str:
    """Uploads the shards of ``folder`` and their metadata in one commit, skipping files that the Hub already has.

    Shards in the repository that are not in the manifest are deleted. A card is added if there is none.

    Returns:
        The URL of the commit.

    Raises:
        DataError: a shard does not match the manifest, or the Hub cannot be reached or refuses access.
    """
    manifest = Manifest.read(folder)
    verify_shards(folder, manifest)
    names = [f"{FOLDER}/{shard.name}" for shard in manifest.shards]
    api = HfApi()
    if not _call_hub(name, lambda: api.file_exists(name, CARD, repo_type="dataset")):
        (folder / CARD).write_text(_CARD, encoding="utf-8")
    logger.info("Uploading %d shards to %s.", len(names), name)
    commit = _call_hub(
        name,
        lambda: api.upload_folder(
            repo_id=name,
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=[*names, *_FILES],
            delete_patterns=f"{FOLDER}/*.parquet",
            commit_message=f"{counted(manifest.clips, 'clip')} in {counted(len(names), 'shard')}",
        ),
    )
    return str(commit.commit_url)


def _call_hub(name: str, request: Callable[[], Result]) -> Result:
    try:
        return request()
    # huggingface_hub uses httpx or httpx2, depending on its version.
    except (errors.HTTPError, OSError, ValueError) as error:  # type: ignore[attr-defined]
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(
            f"--push_to_hub {name}: the Hub cannot be reached, or refuses access ({reason}). Log in with a token that "
            "has write access (hf auth login) and run the same command again; or leave the flag out."
        ) from error
