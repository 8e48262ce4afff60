"""Runs the rows and returns the actual outcome of each."""

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

EQUAL_TEXTS = ("--check_texts", "false")
"""Most rows of clips have one text."""


@dataclass(frozen=True)
class Outcome:
    """Actual outcome of a row."""

    outcome: str
    """As in :class:`Row`, or ``skipped``."""
    message: str


def clips(root: Path) -> dict[str, Outcome]:
    """Prepares all clip rows in one data set, and returns their outcomes by title."""
    wavs = root / "source/clips"
    wavs.mkdir(parents=True)
    (wavs / "good.wav").write_bytes(rows.wav(rows.GOOD))
    named = {row.title: row.name or f"{number}.wav" for number, row in enumerate(rows.CLIPS)}
    lines = [("clips/good.wav", "a word")]
    for row in rows.CLIPS:
        path = wavs / (f"{named[row.title]}" if row.name is None else f"unused{len(lines)}.wav")
        path.write_bytes(row.content) if isinstance(row.content, bytes) else row.content(path)
        name = named[row.title]
        lines.append((name if name.startswith("/") else f"clips/{name}", row.text))
    content = io.StringIO()
    csv.writer(content, lineterminator="\n").writerows([("file_name", "text"), *lines])
    (root / "source/metadata.csv").write_text(content.getvalue(), encoding="utf-8")
    before = fingerprint(root / "source")
    code, output = run(["prepare_data", "--dataset", str(root / "source"), "--output_dir", str(root / "out"), *EQUAL_TEXTS])
    assert code == 0, output
    assert fingerprint(root / "source") == before, "the data set was changed"
    with (root / "out/rejected.csv").open(encoding="utf-8", newline="") as file:
        rejected = {entry["clip"]: Outcome(f"rejected: {entry['reason']}", entry["detail"]) for entry in csv.DictReader(file)}
    texts = [line.split("|")[1] for line in (root / "out/metadata.csv").read_text(encoding="utf-8").splitlines()]
    by_title, accepted = {}, iter(texts[1:])
    for row, (name, text) in zip(rows.CLIPS, lines[1:], strict=True):
        shown = " ".join(name.replace("\0", " ").split())
        by_title[row.title] = rejected.get(shown) or Outcome(
            "accepted" if next(accepted) == text else "accepted, text changed", ""
        )
    assert next(accepted, None) is None, "more clips were accepted than there are"
    assert len(by_title) == len(rows.CLIPS)
    return by_title


def trained(root: Path) -> dict[str, Outcome]:
    """Trains one epoch on clips damaged after preparation, and returns the outcomes by title."""
    argv = rows.damaged_training_set(root)
    before = fingerprint(root / "training/wavs")
    code, output = run(argv)
    assert code == 0, output
    assert fingerprint(root / "training/wavs") == before, "the clips were changed"
    records = [json.loads(line) for line in (root / "training/runs/run/rejected.jsonl").read_text().splitlines()]
    of_clip = {record["clip"]: Outcome(f"rejected: {record['kind']}", record["message"]) for record in records}
    assert len(of_clip) == len(records) == len(rows.TRAINING), list(of_clip.items())
    return {row.title: of_clip[f"{number}.wav"] for number, row in enumerate(rows.TRAINING, start=1)}


def of(row: Row, root: Path) -> Outcome:
    """Runs the command of a row and returns its outcome."""
    if isinstance(row, MachineRow):
        process = row.run(root)
        if isinstance(process, str):
            return Outcome("skipped", process)
        return _outcome(process.returncode, process.stderr)
    assert isinstance(row, CallRow)
    argv = row.call(root)
    before = fingerprint(root)
    code, output = run(argv)
    after = fingerprint(root)
    assert {name: after.get(name) for name in before} == before, "existing files were changed"
    return _outcome(code, output)


def _outcome(code: int, output: str) -> Outcome:
    if code == 0:
        return Outcome("accepted", output)
    if code == 2:
        lines = [line for line in output.splitlines() if line.startswith("vits-trainer: ")]
        assert len(lines) == 1, output
        assert "Traceback" not in output, output
        return Outcome("exit 2", lines[0].removeprefix("vits-trainer: "))
    return Outcome(f"exit {code}", output)


def run(argv: list[str]) -> tuple[int, str]:
    """Runs a command in this process and returns its exit code and its output."""
    output = io.StringIO()
    for handler in list(logging.getLogger().handlers):  # bound to the stream of an earlier call
        if type(handler) is logging.StreamHandler:
            logging.getLogger().removeHandler(handler)
    with redirect_stderr(output), redirect_stdout(output):
        code = main(argv)
    return code, output.getvalue()


def fingerprint(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file in ``folder``, and the target of every link."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            digests[name] = str(path.readlink())
        elif path.is_file():
            with path.open("rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def short(message: str, root: Path) -> str:
    """Returns a message as one line for a table, with ``root`` replaced by ``...``."""
    line = re.sub(r"\s+", " ", message.replace(str(root), "...")).replace("|", "\\|").strip()
    return line if len(line) <= 160 else f"{line[:157]}..."
