"""Where clips come from: finds out what ``--dataset`` is and opens it."""

import glob
from pathlib import Path

from vits_trainer.config.prepare import HUB_NAME, PrepareConfig
from vits_trainer.data.sources.audio_folder import is_audio_folder, open_audio_folder
from vits_trainer.data.sources.base import Source
from vits_trainer.data.sources.common_voice import open_common_voice
from vits_trainer.data.sources.corrections import _correction_names, _open_corrections
from vits_trainer.data.sources.hub import open_hub
from vits_trainer.data.sources.lj_speech import _open_lj_speech
from vits_trainer.data.sources.parquet import open_parquet
from vits_trainer.utils.errors import DataError

KINDS = (
    "an LJ Speech folder (metadata.csv with wavs/ or audio/), an audio folder (metadata.csv with a header "
    "file_name,text), an extracted Common Voice release (validated.tsv with clips/), Parquet (a file, a folder of "
    "files or a pattern), corrections (NAME.wav with NAME.txt), or the name of a data set on the Hugging Face Hub "
    "(owner/name)"
)


def open_source(config: PrepareConfig) -> Source:
    """Finds out what ``config.dataset`` is, and opens it. What lies on this machine goes before the Hub.

    Raises:
        DataError: nothing there that is known, or its metadata are malformed (file and line are named). For
            Parquet and the Hub, damage may show itself only while the clips are read.
    """
    place = Path(config.dataset).expanduser()
    parquet_files: list[Path] = []
    if place.is_dir():
        parquet_files = sorted(place.glob("*.parquet"))
    elif place.is_file():
        parquet_files = [place] if place.suffix == ".parquet" else []
    else:
        # Path.glob takes no absolute pattern.
        parquet_files = sorted(Path(found) for found in glob.glob(str(place), recursive=True))  # noqa: PTH207
        if not parquet_files and HUB_NAME.fullmatch(config.dataset) and place.suffix != ".parquet":
            return open_hub(config)
    for flag in ("config_name", "revision"):
        if getattr(config, flag) is not None:
            raise DataError(f"--{flag} belongs to data sets on the Hub, and {place} is not one. Leave it out.")
    if (place / "validated.tsv").is_file():
        return open_common_voice(place, config)
    if (place / "metadata.csv").is_file():
        return open_audio_folder(place, config) if is_audio_folder(place, config) else _open_lj_speech(place, config)
    if _correction_names(place):
        return _open_corrections(place)
    if parquet_files:
        return open_parquet(parquet_files, config)
    raise DataError(f"--dataset {config.dataset}: {_what_is_wrong_with(place)} Give {KINDS}.")


def _what_is_wrong_with(place: Path) -> str:
    if place.is_dir():
        return "the folder holds neither metadata.csv nor validated.tsv nor *.parquet."
    if place.exists():
        return "the file is no .parquet file."
    return "no such file or folder, and no file matches it as a pattern."
