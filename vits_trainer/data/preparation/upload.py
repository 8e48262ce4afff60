"""Shards on the Hugging Face Hub: a private data set that others prepare nothing for."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, errors

from vits_trainer.data.shards import FOLDER, MANIFEST, Manifest, verify
from vits_trainer.utils.errors import DataError

logger = logging.getLogger("vits_trainer")

CARD = "README.md"
_FILES = (MANIFEST, "dataset.json", "rejected.csv", CARD)
_CARD = f"""---
task_categories: [text-to-speech]
configs:
- config_name: default
  data_files: {FOLDER}/*.parquet
---
Speech for VITS, prepared by vits_trainer: dataset.json says from what, {MANIFEST} what each shard holds.
"""
Answer = TypeVar("Answer")


def open_repository(name: str) -> None:
    """Makes data set ``name``, private, where there is none: a login that may not write shows before hours of work.

    Raises:
        DataError: the Hub cannot be reached, or refuses.
    """
    _asked(name, lambda: HfApi().create_repo(name, repo_type="dataset", private=True, exist_ok=True))


def push(folder: Path, name: str) -> str:
    """Sends the shards of ``folder`` and what belongs to them, in one commit; what is there already is not sent again.

    Shards of an earlier set that are not in the manifest are deleted there. A card is written where there is none.

    Returns:
        The commit's address.

    Raises:
        DataError: a shard is not as the manifest says, the Hub cannot be reached, or refuses.
    """
    manifest = Manifest.read(folder)
    verify(folder, manifest)
    names = [f"{FOLDER}/{shard.name}" for shard in manifest.shards]
    api = HfApi()
    if not _asked(name, lambda: api.file_exists(name, CARD, repo_type="dataset")):
        (folder / CARD).write_text(_CARD, encoding="utf-8")
    logger.info("Sending %d shards to %s.", len(names), name)
    sent = _asked(
        name,
        lambda: api.upload_folder(
            repo_id=name,
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=[*names, *_FILES],
            delete_patterns=f"{FOLDER}/*.parquet",
            commit_message=f"{manifest.clips} clips in {len(names)} shards",
        ),
    )
    return str(sent.commit_url)


def _asked(name: str, request: Callable[[], Answer]) -> Answer:
    try:
        return request()
    # Its HTTP library is httpx or httpx2, by its version.
    except (errors.HTTPError, OSError, ValueError) as error:  # type: ignore[attr-defined]
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(
            f"--push_to_hub {name}: the Hub cannot be reached, or refuses ({reason}). Log in with a token that may "
            "write there (hf auth login) and give the same command again; or leave the flag out."
        ) from error
