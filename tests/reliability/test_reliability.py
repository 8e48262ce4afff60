"""A test for each row of docs/reliability.md."""

import re
from pathlib import Path

import pytest

from tests.reliability import outcomes, rows
from tests.reliability.outcomes import Outcome
from tests.reliability.rows import ClipRow, Row

DOCS = Path(__file__).parents[2] / "docs/reliability.md"
CALLS = [*rows.METADATA, *rows.PREPARED, *rows.STREAMED, *rows.MODELS, *rows.CONFIGURATION, *rows.JUDGING, *rows.PLACES]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    return outcomes.clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    return outcomes.trained(tmp_path_factory.mktemp("trained"))


def require(row: Row, came: Outcome) -> None:
    print(f"{row.what}: {came.outcome} ({' '.join(came.message.split())[:200]})")
    assert came.outcome == row.outcome, came.message
    assert row.said in came.message


@pytest.mark.parametrize("row", rows.CLIPS, ids=lambda row: row.what)
def test_clip_is_prepared_or_rejected(row: ClipRow, clips: dict[str, Outcome]) -> None:
    require(row, clips[row.what])


@pytest.mark.parametrize("row", rows.TRAINING, ids=lambda row: row.what)
def test_clip_that_went_bad_is_rejected_in_training(row: Row, trained: dict[str, Outcome]) -> None:
    require(row, trained[row.what])


@pytest.mark.parametrize("row", CALLS, ids=lambda row: row.what)
def test_call_ends_as_it_says(row: Row, tmp_path: Path) -> None:
    require(row, outcomes.of(row, tmp_path))
    assert not Path("PWNED").exists()


@pytest.mark.parametrize("row", rows.MACHINE, ids=lambda row: row.what)
def test_process_ends_as_it_says(row: Row, tmp_path: Path) -> None:
    came = outcomes.of(row, tmp_path)
    if came.outcome == "skipped":
        pytest.skip(came.message)
    require(row, came)


def test_the_docs_have_these_rows_and_no_others() -> None:
    listed = re.findall(r"^\| (.+?) \| (accepted.*?|rejected: \S+|exit \d) \|", DOCS.read_text(encoding="utf-8"), re.M)
    assert listed == [(row.what, row.outcome) for those in rows.PARTS.values() for row in those]
    assert len(listed) >= 60
    assert len({what for what, _ in listed}) == len(listed)
