"""One test per row of docs/reliability.md."""

import re
from pathlib import Path

import pytest

from tests.reliability import outcomes, rows
from tests.reliability.outcomes import Outcome
from tests.reliability.rows import ClipRow, Row

DOCS = Path(__file__).parents[2] / "docs/reliability.md"
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


def test_docs_list_exactly_these_rows() -> None:
    listed = re.findall(r"^\| (.+?) \| (accepted.*?|rejected: \S+|exit \d) \|", DOCS.read_text(encoding="utf-8"), re.M)
    assert listed == [(row.title, row.outcome) for part in rows.PARTS.values() for row in part]
    assert len(listed) >= 60
    assert len({title for title, _ in listed}) == len(listed)
