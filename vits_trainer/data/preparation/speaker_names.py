"""Short names of speakers: Common Voice names them by hashes of 128 digits.

``spk_0001`` is the first one in the order of the source, so that rows appended to the source change no name. The file
``speakers.csv`` of the prepared folder has the names of the source; it stays on this machine. Copied to the folder of
another preparation before it begins, it keeps the names there.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from vits_trainer.data.sources.base import Source
from vits_trainer.utils import records
from vits_trainer.utils.errors import DataError
from vits_trainer.utils.files import atomic_write
from vits_trainer.utils.strings import csv_cell, is_opaque, one_line

SPEAKERS = "speakers.csv"
_HEADER = ["speaker", "source"]
_REMEDY = "Restore the file, or delete it and prepare the whole data set again."


def short_speaker_names(source: Source, output_dir: Path) -> dict[str, str]:
    """Returns the short name of each speaker with a name that is a hash; writes speakers.csv if there are any.

    Raises:
        DataError: speakers.csv of an earlier preparation cannot be read, or has a name that another speaker has.
    """
    if source.speakers is None:
        return {}
    path = output_dir / SPEAKERS
    known = _read(path)
    in_order = list(dict.fromkeys(one_line(name) for name in source.speakers() if name))
    shared = {*known.values()} & {*in_order}
    if shared:
        raise DataError(f"{path}: the source has another speaker {min(shared)}. Change this name in the file.")
    names = _numbered(in_order, known)
    if names and names != known:
        content = io.StringIO()
        csv.writer(content, lineterminator="\n").writerows([_HEADER, *((short, name) for name, short in names.items())])
        output_dir.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content.getvalue())
    return names


def _numbered(in_order: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    names = dict(known)
    taken = {*names.values(), *(name for name in in_order if not is_opaque(name))}
    number = 0
    for name in in_order:
        if is_opaque(name) and name not in names:
            number += 1
            while f"spk_{number:04d}" in taken:
                number += 1
            names[name] = f"spk_{number:04d}"
    return names


def _read(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    content = records.read_bytes(path, DataError, _REMEDY, records.MAX_UNTYPED_BYTES)
    try:
        header, *rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        names = {source: short for short, source in rows}
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        raise DataError(f"{path}: is not a table of speakers ({error}). {_REMEDY}") from error
    invalid = [short for short in names.values() if csv_cell(short) != short or "|" in short or not short]
    if header != _HEADER or len(set(names.values())) != len(rows) or invalid:
        raise DataError(f"{path}: is not a table of {' and '.join(_HEADER)} with different names. {_REMEDY}")
    return names
