"""A text is divided among clips by what a recognizer hears in each."""

from functools import cache

import numpy as np
import pytest

from vits_trainer.data.segmentation import known_text
from vits_trainer.data.segmentation.known_text import agreement, divide_text

SENTENCES = [f"Sentence number {n} tells of {'abcdefghij'[n % 10] * 3}{n * 7919 % 1000} things." for n in range(60)]


def heard(sentence: str) -> str:
    return sentence.lower().replace(".", "")


def noisy(text: str, rate: float, seed: int) -> str:
    draw = np.random.default_rng(seed)
    letters = [
        str(draw.choice(list("aeinrst"))) if draw.random() < rate else letter
        for letter in text
        if draw.random() > rate / 2
    ]
    return "".join(letters)


def divided(text: str, transcripts: list[str]) -> tuple[list[str], list[str]]:
    division = divide_text(text, transcripts, [4.0] * len(transcripts))
    return [part.text for part in division.parts], division.unspoken


def test_a_perfect_transcript_gives_each_clip_its_sentence() -> None:
    parts, unspoken = divided("\n".join(SENTENCES), list(map(heard, SENTENCES)))
    assert (parts, unspoken) == (SENTENCES, [])


def test_a_transcript_with_every_seventh_letter_wrong_does_so_too() -> None:
    division = divide_text(" ".join(SENTENCES), [noisy(heard(s), 0.1, n) for n, s in enumerate(SENTENCES)], [4.0] * 60)
    assert [part.text for part in division.parts] == SENTENCES
    assert all(part.confidence > 0.6 for part in division.parts)


def test_passages_that_are_not_spoken_and_speech_that_is_not_in_the_text_are_left_out() -> None:
    spoken = [*SENTENCES[:20], *SENTENCES[30:]]
    written = [*SENTENCES[:40], *SENTENCES[45:]]
    division = divide_text(" ".join(written), list(map(heard, spoken)), [4.0] * len(spoken))
    confident = {part.text for part in division.parts if part.confidence > 0.7}
    assert confident == set(spoken) & set(written)
    assert sum(part.confidence > 0.7 for part in division.parts) == len(confident)


def test_another_text_gives_no_confident_part() -> None:
    other = "The quick brown fox jumps over the lazy dog while every good boy does fine in the old town. " * 20
    division = divide_text(other, list(map(heard, SENTENCES)), [4.0] * 60)
    assert max(part.confidence for part in division.parts) < 0.5


NOTHING = [("", ["a b", "c"]), ("...", ["a"]), ("One two.", ["", ""]), ("", [])]


@pytest.mark.parametrize(("text", "transcripts"), NOTHING)
def test_nothing_to_compare(text: str, transcripts: list[str]) -> None:
    parts, _ = divided(text, transcripts)
    assert parts == [""] * len(transcripts)


def test_every_word_is_in_one_part_or_unspoken() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        words = [str(draw.choice(["alpha", "be", "“gamma”,", "—", "delta.", "so", "2024"])) for _ in range(30)]
        heard_words = [word for word in words if draw.random() > 0.3]
        cuts = sorted(draw.integers(0, len(heard_words) + 1, 3).tolist())
        clips = [" ".join(heard_words[a:b]) for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
        parts, unspoken = divided(" ".join(words), clips)
        left = [word for piece in (*parts, *unspoken) for word in piece.split() if word != "—"]
        assert sorted(left) == sorted(word for word in words if word != "—")


def test_a_word_at_the_border_that_nobody_heard_goes_to_the_slower_clip() -> None:
    parts = divide_text("one two three a five six", ["one two three", "five six"], [1.0, 9.0]).parts
    assert [part.text for part in parts] == ["one two three", "a five six"]
    assert all(part.edges_agree for part in parts)


def test_a_long_word_at_the_border_that_nobody_heard_makes_both_clips_uncertain() -> None:
    division = divide_text("one two three somewhere five six", ["one two three", "five six", "x"], [1.0, 9.0, 1.0])
    assert division.unspoken == ["somewhere"]
    assert [part.edges_agree for part in division.parts] == [False, False, False]


@pytest.mark.parametrize(
    ("transcript", "agrees"), [("there one two three", False), ("one two three then", False), ("so one to three", True)]
)
def test_a_clip_that_begins_or_ends_with_other_words_does_not_agree(transcript: str, agrees: bool) -> None:
    (part,) = divide_text("One, two, three.", [transcript], [2.0]).parts
    assert part.edges_agree == agrees
    assert part.confidence > 0.6


def test_the_same_word_at_the_begin_of_a_clip_that_is_not_in_the_text_stays_with_its_clip() -> None:
    texts = ["The end of it came early.", "The many stones were grey.", "The rain went on."]
    transcripts = [heard(texts[0]), "the other speech said now", *map(heard, texts[1:])]
    division = divide_text(" ".join(texts), transcripts, [3.0] * 4)
    assert [part.text for part in division.parts if part.edges_agree] == texts


def test_words_at_the_border_belong_to_the_clip_where_a_number_was_heard() -> None:
    before = "For a very long time it was said that the bible of"
    text = f"{before} fourteen fifty-five, has never been surpassed in beauty."
    parts = divide_text(text, [f"{before} 1455", "has never been surpassed in beauty"], [3.0, 3.0]).parts
    assert [part.text for part in parts] == [f"{before} fourteen fifty-five,", "has never been surpassed in beauty."]
    assert [part.edges_agree for part in parts] == [True, True]


def test_scripts_without_spaces_are_divided_at_characters() -> None:
    parts, unspoken = divided("今天天气很好。我们去公园吧。", ["今天天气很好", "我们去公园吧"])
    assert (parts, unspoken) == (["今天天气很好。", "我们去公园吧。"], [])


def test_agreement() -> None:
    assert agreement("Ab, cd!", "ab cd") == 1
    assert agreement("abcd", "abxd") == 0.75
    assert agreement("", "...") == 0


def test_the_alignment_of_letters_has_the_best_score() -> None:
    match, mismatch, gap, more = known_text._MATCH, known_text._MISMATCH, known_text._OPEN, known_text._EXTEND
    draw = np.random.default_rng(0)
    for _ in range(40):
        first, second = (draw.integers(0, 3, draw.integers(1, 8)).astype(np.int32) for _ in range(2))

        @cache
        def best(i: int, j: int, state: int, first: bytes = first.tobytes(), second: bytes = second.tobytes()) -> float:
            a, b = np.frombuffer(first, np.int32), np.frombuffer(second, np.int32)
            if i == len(a) and j == len(b):
                return 0.0
            scores = []
            if i < len(a) and j < len(b):
                scores.append((match if a[i] == b[j] else mismatch) + best(i + 1, j + 1, 0))
            if i < len(a):
                scores.append((more if state == 1 else gap) + best(i + 1, j, 1))
            if j < len(b):
                scores.append((more if state == 2 else gap) + best(i, j + 1, 2))
            return max(scores)

        nowhere = np.zeros(len(second) + 1, bool)
        found = known_text._gotoh(first, second, nowhere, (match, mismatch, gap, more, 0.0))
        assert score(first, second, found.tolist()) == pytest.approx(best(0, 0, 0))


def score(first: np.ndarray, second: np.ndarray, found: list[int]) -> float:
    """Score of an alignment, where letters skipped in both come in the better order."""
    total, position, skipped = 0.0, 0, 0
    for row, of in [*enumerate(found), (len(first), len(second))]:
        if of < 0:
            skipped += 1
            continue
        for run in (skipped, of - position):
            total += known_text._OPEN + (run - 1) * known_text._EXTEND if run else 0.0
        position, skipped = of + 1, 0
        if row < len(first):
            total += known_text._MATCH if first[row] == second[of] else known_text._MISMATCH
    return total
