"""One test per row: how invalid input ends."""

import re
from pathlib import Path

import pytest

from tests.reliability import outcomes, rows
from tests.reliability.outcomes import Outcome
from tests.reliability.rows import ClipRow, Row
from vits_trainer.data.rejections import Reason

DOCS = Path(__file__).parents[2] / "docs"
CALLS = [*rows.METADATA, *rows.PREPARED, *rows.STREAMED, *rows.MODELS, *rows.CONFIGURATION, *rows.EVALUATION, *rows.OUTPUT_PATHS]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    return outcomes.clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    return outcomes.trained(tmp_path_factory.mktemp("trained"))


def require(row: Row, actual: Outcome) -> None:
    print(f"{row.title}: {actual.outcome} ({' '.join(actual.message.split())[:200]})")
    assert actual.outcome == row.outcome, actual.message
    assert row.message in actual.message


@pytest.mark.parametrize("row", rows.CLIPS, ids=lambda row: row.title)
def test_clip_is_prepared_or_rejected(row: ClipRow, clips: dict[str, Outcome]) -> None:
    require(row, clips[row.title])


@pytest.mark.parametrize("row", rows.TRAINING, ids=lambda row: row.title)
def test_damaged_clip_is_rejected_in_training(row: Row, trained: dict[str, Outcome]) -> None:
    require(row, trained[row.title])


@pytest.mark.parametrize("row", CALLS, ids=lambda row: row.title)
def test_command_has_the_expected_outcome(row: Row, tmp_path: Path) -> None:
    require(row, outcomes.of(row, tmp_path))
    assert not Path("PWNED").exists()


@pytest.mark.parametrize("row", rows.MACHINE, ids=lambda row: row.title)
def test_process_has_the_expected_outcome(row: Row, tmp_path: Path) -> None:
    actual = outcomes.of(row, tmp_path)
    if actual.outcome == "skipped":
        pytest.skip(actual.message)
    require(row, actual)


def test_docs_count_the_rows_and_explain_every_reason() -> None:
    titles = [row.title for part in rows.PARTS.values() for row in part]
    assert len(set(titles)) == len(titles)
    (count,) = re.findall(r"^(\d+) kinds of invalid input", (DOCS / "reliability.md").read_text("utf-8"), re.MULTILINE)
    assert int(count) == len(titles)
    table = (DOCS / "troubleshooting.md").read_text("utf-8").partition("### Rejected clips")[2].partition("\n## ")[0]
    explained = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(.+?)`", row)}
    assert explained == set(Reason)
