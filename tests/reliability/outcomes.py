"""Tries the rows, and says what came of each."""

import csv
import hashlib
import io
import json
import logging
import re
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from tests.reliability import rows
from tests.reliability.rows import CallRow, MachineRow, Row
from vits_trainer.cli.main import main


@dataclass(frozen=True)
class Outcome:
    """What came of a row."""

    outcome: str
    """In the words of :class:`Row`, or ``skipped``."""
    message: str


def clips(place: Path) -> dict[str, Outcome]:
    """Of all clip rows, prepared in one data set among good clips."""
    wavs = place / "source/clips"
    wavs.mkdir(parents=True)
    (wavs / "good.wav").write_bytes(rows.wav(rows.GOOD))
    named = {row.what: row.name or f"{number}.wav" for number, row in enumerate(rows.CLIPS)}
    lines = [("clips/good.wav", "a word")]
    for row in rows.CLIPS:
        path = wavs / (f"{named[row.what]}" if row.name is None else f"unused{len(lines)}.wav")
        path.write_bytes(row.content) if isinstance(row.content, bytes) else row.content(path)
        name = named[row.what]
        lines.append((name if name.startswith("/") else f"clips/{name}", row.text))
    content = io.StringIO()
    csv.writer(content, lineterminator="\n").writerows([("file_name", "text"), *lines])
    (place / "source/metadata.csv").write_text(content.getvalue(), encoding="utf-8")
    before = fingerprint(place / "source")
    code, said = called(["prepare_data", "--dataset", str(place / "source"), "--output_dir", str(place / "out")])
    assert code == 0, said
    assert fingerprint(place / "source") == before, "the data set was changed"
    with (place / "out/rejected.csv").open(encoding="utf-8", newline="") as file:
        rejected = {entry["clip"]: Outcome(f"rejected: {entry['reason']}", entry["detail"]) for entry in csv.DictReader(file)}
    texts = [line.split("|")[1] for line in (place / "out/metadata.csv").read_text(encoding="utf-8").splitlines()]
    found, accepted = {}, iter(texts[1:])
    for row, (name, text) in zip(rows.CLIPS, lines[1:], strict=True):
        shown = " ".join(name.replace("\0", " ").split())
        found[row.what] = rejected.get(shown) or Outcome(
            "accepted" if next(accepted) == text else "accepted, text changed", ""
        )
    assert next(accepted, None) is None, "more clips were accepted than there were"
    assert len(found) == len(rows.CLIPS)
    return found


def trained(place: Path) -> dict[str, Outcome]:
    """Of all rows of clips that went bad after preparation, in one epoch of training."""
    words = rows.spoiled(place)
    before = fingerprint(place / "training/wavs")
    code, said = called(words)
    assert code == 0, said
    assert fingerprint(place / "training/wavs") == before, "the clips were changed"
    records = [json.loads(line) for line in (place / "training/runs/run/rejected.jsonl").read_text().splitlines()]
    of_clip = {record["clip"]: Outcome(f"rejected: {record['kind']}", record["message"]) for record in records}
    assert len(of_clip) == len(records) == len(rows.TRAINING), list(of_clip.items())
    return {row.what: of_clip[f"{number}.wav"] for number, row in enumerate(rows.TRAINING, start=1)}


def of(row: Row, place: Path) -> Outcome:
    """Of a call or a process."""
    if isinstance(row, MachineRow):
        ended = row.run(place)
        if isinstance(ended, str):
            return Outcome("skipped", ended)
        return _judged(ended.returncode, ended.stderr)
    assert isinstance(row, CallRow)
    words = row.call(place)
    before = fingerprint(place)
    code, said = called(words)
    after = fingerprint(place)
    assert {name: after.get(name) for name in before} == before, "what was there has been changed"
    return _judged(code, said)


def _judged(code: int, said: str) -> Outcome:
    if code == 0:
        return Outcome("accepted", said)
    if code == 2:
        lines = [line for line in said.splitlines() if line.startswith("vits-trainer: ")]
        assert len(lines) == 1, said
        assert "Traceback" not in said, said
        return Outcome("exit 2", lines[0].removeprefix("vits-trainer: "))
    return Outcome(f"exit {code}", said)


def called(words: list[str]) -> tuple[int, str]:
    """A command in this process: its code, and all that it said."""
    said = io.StringIO()
    for handler in list(logging.getLogger().handlers):  # what an earlier call has bound to its own stream
        if type(handler) is logging.StreamHandler:
            logging.getLogger().removeHandler(handler)
    with redirect_stderr(said), redirect_stdout(said):
        code = main(words)
    return code, said.getvalue()


def fingerprint(folder: Path) -> dict[str, str]:
    """Of every file in it; a link's is where it leads."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_file():
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def short(message: str, place: Path) -> str:
    """One line of a message for a table."""
    line = re.sub(r"\s+", " ", message.replace(str(place), "...")).replace("|", "\\|").strip()
    return line if len(line) <= 160 else f"{line[:157]}..."
