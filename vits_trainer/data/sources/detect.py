"""The registry of sources, and detection of the one that ``--dataset`` names."""

from pathlib import Path

from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.config.serialization import expanded
from vits_trainer.data.sources import common_voice, corrections, hub, parquet, table
from vits_trainer.data.sources.base import Source
from vits_trainer.data.sources.files import is_audio
from vits_trainer.utils.errors import DataError

SOURCES = (
    common_voice.SOURCE,
    table.SOURCE,
    corrections.SOURCE,
    parquet.SOURCE,
    hub.SOURCE,
)
"""All kinds of sources, in order of precedence: the first that detects ``--dataset`` opens it."""


_TABLE_ENDINGS = (".csv", ".tsv", ".txt", ".list")


def open_source(config: PrepareConfig) -> Source:
    """Detects the kind of ``config.dataset`` and opens it. Local files take precedence over the Hub.

    Raises:
        DataError: it does not exist, is of no known kind, or its metadata are malformed (the message names file and
            line). Damage of Parquet files and of data sets on the Hub may be detected only while the clips are read.
    """
    path = expanded("dataset", config.dataset)
    kind = next((kind for kind in SOURCES if kind.detect(path, config)), None)
    if kind is not hub.SOURCE:
        hub.refuse_hub_options(path, config)
    if kind is None:
        problem = _problem_with(path)
        known = "" if problem.endswith("?") else f" Give {describe_sources()}."
        raise DataError(f"--dataset {config.dataset}: {problem}{known}")
    return kind.open(path, config)


def describe_sources() -> str:
    """Returns the descriptions of all kinds of sources, as one enumeration."""
    *others, last = (kind.description for kind in SOURCES)
    return f"{', '.join(others)}, or {last}"


def _problem_with(path: Path) -> str:
    if path.is_dir():
        names = sorted(file.name for file in path.iterdir() if file.suffix.casefold() in _TABLE_ENDINGS)
        places = (f"{below}/{name}" for below in ("*", "*/*") for name in ("validated.tsv", *table.TABLES))
        below = next((file.parent for place in places for file in sorted(path.glob(place))), None)
        if "train.tsv" in names:
            return "it has train.tsv and no validated.tsv: copy train.tsv to validated.tsv to read those clips."
        if names:
            return f"it has {names[0]} and no metadata.csv: name the table of files and texts metadata.csv."
        if below is not None:
            return f"did you mean {below}?"
        if any(is_audio(file.name) for file in path.iterdir()):
            return "it has recordings and no table of their texts: to cut long recordings, give --segment true."
        return "the folder is in no known format."
    if path.exists():
        return "the file is in no known format."
    return "no such file or folder, and no file matches it as a pattern."
