"""Data sets of the Hugging Face Hub, streamed."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vits_trainer.config.prepare import HUB_NAME, PrepareConfig
from vits_trainer.data.audio import Reason, Rejection
from vits_trainer.data.sources.base import Columns, Source, SourceClip, SourceKind, row_clip
from vits_trainer.data.sources.parquet import parquet_files
from vits_trainer.utils.errors import DataError
from vits_trainer.utils.strings import first_line, is_opaque

HUB_TIMEOUT_S = 10
"""Timeout of the first request to the Hub."""
DOWNLOAD_REMEDY = "download the data set and give its folder"


def is_on_hub(path: Path, config: PrepareConfig) -> bool:
    """Whether ``config.dataset`` looks like owner/name and nothing on this machine has that path."""
    is_local = path.exists() or bool(parquet_files(path))
    return not is_local and HUB_NAME.fullmatch(config.dataset) is not None and path.suffix != ".parquet"


def refuse_hub_options(path: Path, config: PrepareConfig) -> None:
    """Raises :class:`DataError` if ``config`` has options that only data sets on the Hub have."""
    for flag in ("config_name", "revision"):
        if getattr(config, flag) is not None:
            raise DataError(f"--{flag} applies to data sets on the Hub only, and {path} is not one. Leave it out.")


def _open_hub(_: Path, config: PrepareConfig) -> Source:
    """Opens a data set on the Hub; its recordings are downloaded while the clips are read.

    Raises:
        DataError: the Hub cannot be reached, has no such data set, configuration, split or revision, or requires a
            login; or the data set needs a loading script, or stores its recordings in single files.
    """
    from datasets import load_dataset  # noqa: PLC0415  takes seconds
    from datasets.exceptions import DatasetsError  # noqa: PLC0415

    commit = _resolve_commit(config)
    try:
        rows = load_dataset(
            config.dataset, config.config_name, split=config.split, revision=commit, streaming=True
        ).decode(False)  # decoding here would need torchcodec
        names = rows.column_names or list(next(iter(rows), {}))
    except (OSError, ValueError, RuntimeError, ImportError, DatasetsError) as error:
        raise _unreadable_on_hub(config, error) from error
    if not names:
        raise DataError(f"--dataset {config.dataset}: no clips in {config.split}. Choose another --split.")
    columns = Columns.choose(f"--dataset {config.dataset}", names, config)
    named = rows.select_columns([columns.speaker]) if columns.speaker else None
    splits = [(rows.info.splits or {}).get(name.strip()) for name in config.split.split("+")]
    counts = [split.num_examples for split in splits if split is not None and split.num_examples]
    clip_count = sum(counts) if len(counts) == len(splits) else None
    rows = rows.select_columns(columns.present())

    def clips_from(start: int) -> Iterator[SourceClip]:
        return _clips(rows.skip(start) if start else rows, start, columns, config)

    def speakers() -> Iterator[str | None]:
        return _speakers(named, columns.speaker or "", config)

    return Source(
        SOURCE.name,
        None,
        clip_count,
        clips_from(0),
        revision=commit,
        clips_from=clips_from,
        speakers=speakers if columns.speaker else None,
    )


def _speakers(rows: Any, column: str, config: PrepareConfig) -> Iterator[str | None]:
    """Yields the speakers of all rows; only the first one if it is no hash: then none is, and the pass is spared."""
    from datasets.exceptions import DatasetsError  # noqa: PLC0415

    try:
        for number, row in enumerate(rows):
            name = None if row[column] is None else str(row[column])
            yield name
            if number == 0 and not is_opaque(name or ""):
                return
    except (OSError, ValueError, RuntimeError, ImportError, DatasetsError) as error:
        raise _unreadable_on_hub(config, error) from error


def parquet_on_hub(config: PrepareConfig) -> tuple[str, list[str]]:
    """Finds the Parquet files of a split on the Hub; reads no rows.

    Returns:
        The address of the data set at its present commit, and the files' paths in it.

    Raises:
        DataError: as :func:`_open_hub`, or the clips are not in Parquet files.
    """
    from datasets import load_dataset_builder  # noqa: PLC0415  takes seconds
    from datasets.exceptions import DatasetsError  # noqa: PLC0415

    root = f"hf://datasets/{config.dataset}@{_resolve_commit(config)}"
    try:
        builder = load_dataset_builder(config.dataset, config.config_name, revision=root.rpartition("@")[2])
    except (OSError, ValueError, RuntimeError, ImportError, DatasetsError) as error:
        raise _unreadable_on_hub(config, error) from error
    by_split = {str(split): files for split, files in (builder.config.data_files or {}).items()}
    splits = [name.strip() for name in config.split.split("+")]
    if unknown := [split for split in splits if split not in by_split]:
        raise DataError(
            f"--dataset {config.dataset}: no split {unknown[0]}; it has {', '.join(by_split)}. Choose another --split."
        )
    names = [str(file).removeprefix(f"{root}/") for split in splits for file in by_split[split]]
    if foreign := [name for name in names if not name.endswith(".parquet")]:
        raise DataError(
            f"--dataset {config.dataset}: {foreign[0]} is not Parquet, and only Parquet is streamed as it lies. "
            "Prepare the data set with prepare_data."
        )
    return root, names


def _resolve_commit(config: PrepareConfig) -> str | None:
    """Checks access to the data set with single requests, without the minutes of retries of ``load_dataset``.

    Returns:
        The commit to which ``config.revision`` resolves now, so that later commits are not mixed in.

    Raises:
        DataError: the Hub cannot be reached, has no such data set or revision, or requires a login.
    """
    from huggingface_hub import HfApi, errors  # noqa: PLC0415  takes a second

    flag = f"--dataset {config.dataset}"
    try:
        api = HfApi()
        commit = api.dataset_info(config.dataset, revision=config.revision, timeout=HUB_TIMEOUT_S).sha
        api.auth_check(config.dataset, repo_type="dataset")  # commits of a gated data set are public
    except errors.GatedRepoError as error:
        raise DataError(
            f"{flag}: it is gated. Accept its terms on its page on the Hub and "
            f"log in (hf auth login), or {DOWNLOAD_REMEDY}."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DataError(
            f"{flag}: no such file or folder, and the Hugging Face Hub has no accessible data set of this name. "
            "Correct the name, or log in (hf auth login) if it is private."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DataError(f"{flag}: it has no revision {config.revision}. Correct or leave out --revision.") from error
    # huggingface_hub uses httpx or httpx2, depending on its version.
    except (errors.HTTPError, OSError, ValueError) as error:  # type: ignore[attr-defined]
        raise DataError(
            f"{flag}: no such file or folder, and the Hugging Face Hub cannot be reached ({first_line(error)}). "
            f"Correct the path, connect (and unset HF_HUB_OFFLINE), or {DOWNLOAD_REMEDY}."
        ) from error
    return commit


def _unreadable_on_hub(config: PrepareConfig, error: Exception) -> DataError:
    flag = f"--dataset {config.dataset}"
    if "scripts are no longer supported" in str(error):
        return DataError(
            f"{flag}: it needs a loading script, which is not run. Please "
            f"{DOWNLOAD_REMEDY}, such as the extracted Common Voice release."
        )
    if isinstance(error, ImportError) or "torchcodec" in str(error):
        return DataError(
            f"{flag}: stores its recordings in single files, which are not read from the Hub. Please {DOWNLOAD_REMEDY}."
        )
    reason = " ".join(str(error).split())[:400] or type(error).__name__
    return DataError(
        f"{flag}: cannot be read ({reason}). Check --config_name and --split {config.split}, or {DOWNLOAD_REMEDY}."
    )


def _clips(
    rows: Iterable[Mapping[str, Any]], start: int, columns: Columns, config: PrepareConfig
) -> Iterator[SourceClip]:
    import pyarrow as pa  # noqa: PLC0415
    from datasets.exceptions import DatasetsError  # noqa: PLC0415

    def reject_file_name(name: str) -> Rejection:
        # A path in a table on the Hub must not open a file of this machine.
        return Rejection(Reason.MISSING_FILE, f"{name}: the row has a file name instead of audio")

    number = start
    try:
        for number, row in enumerate(rows, start=start + 1):
            yield row_clip(row, f"{config.dataset} {config.split} row {number}", columns, reject_file_name, config)
    except (pa.ArrowException, OSError, ValueError, RuntimeError, ImportError, DatasetsError) as error:
        raise _unreadable_on_hub(config, error) from error
    if number == 0:
        raise DataError(f"--dataset {config.dataset}: no clips in {config.split}. Choose another --split.")


SOURCE = SourceKind("hub", "the name of a data set on the Hugging Face Hub (owner/name)", is_on_hub, _open_hub)
