"""Releases of Common Voice: order, votes, sentences, errors with file and line."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.audio import good_utterances, write_release
from tests.support.sources import clips_of, reasons, refusal
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.audio import Reason
from vits_trainer.data.sources.detect import open_source


def test_rows_are_read_in_order_and_votes_are_checked_before_the_file(tmp_path: Path) -> None:
    good = good_utterances(1)[0]
    rows = [(1, 0, b""), (2, 0, b""), (2, 1, b""), (1, 0, None), (9, 0, None)]
    release = write_release(
        tmp_path / "cv",
        [
            replace(good, path=f"{n}.mp3", up_votes=up, down_votes=down, content=content, client_id=f"c{n}")
            for n, (up, down, content) in enumerate(rows)
        ],
    )
    source = open_source(PrepareConfig(dataset=str(release)))
    assert (source.kind, source.clip_count) == ("common-voice", 5)
    clips = list(source.clips)
    assert [clip.clip_id for clip in clips] == [f"{n}.mp3" for n in range(5)]
    assert [clip.speaker for clip in clips] == [f"c{n}" for n in range(5)]
    assert clips[1].audio == release / "clips" / "1.mp3"
    few, many, missing = Reason.TOO_FEW_UPVOTES, Reason.TOO_MANY_DOWNVOTES, Reason.MISSING_FILE
    assert reasons(clips) == [few, None, many, few, missing]
    assert reasons(clips_of(release, min_upvotes=0, max_downvotes=1)) == [None, None, None, missing, missing]
    assert reasons(clips_of(release, min_upvotes=3)) == [few, few, few, few, missing]


def test_quotes_in_sentences_are_kept(tmp_path: Path) -> None:
    good = good_utterances(1)[0]
    sentences = ['"Were', '""quoted"" here', "and\\here\u2028too"]
    release = write_release(tmp_path / "cv", [replace(good, sentence=sentence) for sentence in sentences])
    assert [clip.text for clip in clips_of(release)] == sentences


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        pytest.param("client_id\tpath\tsentence\nc\ta\tb\n", 1, "no column up_votes, down_votes", id="no votes"),
        pytest.param("", 1, "no column client_id, path", id="empty"),
    ],
)
def test_errors_for_a_malformed_release_name_file_and_line(
    tmp_path: Path, content: str, line: int, problem: str
) -> None:
    (tmp_path / "validated.tsv").write_text(content)
    message = refusal(tmp_path)
    assert f"{tmp_path / 'validated.tsv'} line {line}:" in message
    assert problem in message


def test_a_line_that_cannot_be_read_is_rejected_alone(tmp_path: Path) -> None:
    good = good_utterances(1)[0]
    sentences = ["first", "a TAB\tinside", "a line\nfeed", "no vote", "text as votes", "no path", "last"]
    clips = [replace(good, path=f"{n}.mp3", sentence=sentence) for n, sentence in enumerate(sentences)]
    release = write_release(tmp_path / "cv", [*clips[:3], replace(clips[3], up_votes=""), *clips[4:]])
    tsv = release / "validated.tsv"
    lines = tsv.read_text().replace("text as votes\t2", "text as votes\tmany").replace("\t5.mp3\t", "\t\t")
    tsv.write_text(lines)
    clips = clips_of(release)
    malformed, few, missing = Reason.MALFORMED_ROW, Reason.TOO_FEW_UPVOTES, Reason.MISSING_FILE
    assert reasons(clips) == [None, malformed, malformed, malformed, few, malformed, missing, None]
    assert [clip.clip_id for clip in clips[1:4]] == [f"validated.tsv line {number}" for number in (3, 4, 5)]
    assert "a TAB or line feed in a sentence?" in clips[1].rejection.detail
    assert "up_votes 'many' is not a number" in clips[5].rejection.detail


def test_a_release_without_clips_is_refused(tmp_path: Path) -> None:
    assert "contains no clips" in refusal(write_release(tmp_path / "cv", []))
