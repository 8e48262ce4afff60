"""A data set of the Hugging Face Hub, as a source."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.audio import Reason, Rejection
from vits_trainer.data.sources.base import Columns, Source, SourceClip, row_clip
from vits_trainer.utils.errors import DataError
from vits_trainer.utils.strings import first_line

HUB_TIMEOUT_S = 10
"""How long to wait for the Hub's first answer."""
DOWNLOAD_REMEDY = "download the data set and give its folder"


# The Hugging Face Hub


def open_hub(config: PrepareConfig) -> Source:
    """Opens a data set on the Hub; its recordings are fetched while the clips are read.

    Raises:
        DataError: the Hub cannot be reached, has no such data set, configuration, split or revision, asks for a
            login, or the data set needs a program of its own or keeps its recordings in single files.
    """
    from datasets import load_dataset  # noqa: PLC0415  takes seconds
    from datasets.exceptions import DatasetsError  # noqa: PLC0415

    commit = _hub_commit(config)
    try:
        rows = load_dataset(
            config.dataset, config.config_name, split=config.split, revision=commit, streaming=True
        ).decode(False)  # decoding it here would need torchcodec
        names = rows.column_names or list(next(iter(rows), {}))
    except (OSError, ValueError, RuntimeError, ImportError, DatasetsError) as error:
        raise _unreadable_on_hub(config, error) from error
    if not names:
        raise DataError(f"--dataset {config.dataset}: no clip in {config.split}. Choose another --split.")
    columns = Columns.of(f"--dataset {config.dataset}", names, config)
    splits = [(rows.info.splits or {}).get(name.strip()) for name in config.split.split("+")]
    counts = [split.num_examples for split in splits if split is not None and split.num_examples]
    clip_count = sum(counts) if len(counts) == len(splits) else None
    wanted = rows.select_columns(columns.present())

    def clips_behind(first: int) -> Iterator[SourceClip]:
        return _hub_clips(wanted.skip(first) if first else wanted, first, columns, config)

    return Source("hub", None, clip_count, clips_behind(0), revision=commit, clips_from=clips_behind)


def _hub_commit(config: PrepareConfig) -> str | None:
    """Asks the Hub once, without the minutes of retries of ``load_dataset``, whether the data set can be read.

    Returns:
        The commit that ``config.revision`` means now: later commits are not mixed into what is read.
    """
    from huggingface_hub import HfApi, errors  # noqa: PLC0415  takes a second

    place = f"--dataset {config.dataset}"
    try:
        api = HfApi()
        commit = api.dataset_info(config.dataset, revision=config.revision, timeout=HUB_TIMEOUT_S).sha
        api.auth_check(config.dataset, repo_type="dataset")  # a gated one shows its commits to all
    except errors.GatedRepoError as error:
        raise DataError(
            f"{place}: its owner gives it only to those who accept its terms. Accept them on its page on the Hub and "
            f"log in (hf auth login), or {DOWNLOAD_REMEDY}."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DataError(
            f"{place}: no such file or folder, and the Hugging Face Hub shows no data set of this name. Correct the "
            "name, or log in (hf auth login) if it is private."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DataError(f"{place}: it has no revision {config.revision}. Correct or leave out --revision.") from error
    # Its HTTP library is httpx or httpx2, by its version.
    except (errors.HTTPError, OSError, ValueError) as error:  # type: ignore[attr-defined]
        raise DataError(
            f"{place}: no such file or folder, and the Hugging Face Hub cannot be reached ({first_line(error)}). "
            f"Correct the path, connect (and unset HF_HUB_OFFLINE), or {DOWNLOAD_REMEDY}."
        ) from error
    return commit


def _unreadable_on_hub(config: PrepareConfig, error: Exception) -> DataError:
    place = f"--dataset {config.dataset}"
    if "scripts are no longer supported" in str(error):
        return DataError(
            f"{place}: its files can be read only by a program of its own, which is not run. Please "
            f"{DOWNLOAD_REMEDY}, such as the extracted Common Voice release."
        )
    if isinstance(error, ImportError) or "torchcodec" in str(error):
        return DataError(
            f"{place}: keeps its recordings in single files, which are not read from the Hub. Please {DOWNLOAD_REMEDY}."
        )
    reason = " ".join(str(error).split())[:400] or type(error).__name__
    return DataError(
        f"{place}: cannot be read ({reason}). Check --config_name and --split {config.split}, or {DOWNLOAD_REMEDY}."
    )


def _hub_clips(
    rows: Iterable[Mapping[str, Any]], behind: int, columns: Columns, config: PrepareConfig
) -> Iterator[SourceClip]:
    import pyarrow as pa  # noqa: PLC0415
    from datasets.exceptions import DatasetsError  # noqa: PLC0415

    def nowhere(name: str) -> Rejection:
        # A path that somebody wrote into a table on the Hub must not open a file of this machine.
        return Rejection(Reason.MISSING_FILE, f"{name}: the row has only the name of a file")

    number = behind
    try:
        for number, row in enumerate(rows, start=behind + 1):
            yield row_clip(row, f"{config.dataset} {config.split} row {number}", columns, nowhere, config)
    except (pa.ArrowException, OSError, ValueError, RuntimeError, ImportError, DatasetsError) as error:
        raise _unreadable_on_hub(config, error) from error
    if number == 0:
        raise DataError(f"--dataset {config.dataset}: no clip in {config.split}. Choose another --split.")
