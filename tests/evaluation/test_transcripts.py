"""Error rates against hand-counted edits, and spellings that the normalization makes equal."""

import pytest

from vits_trainer.evaluation.transcripts import spoken_form, transcript_errors


def test_hand_counted_edits():
    # "the old boat" recognized as "the odd boats": l -> d, + s; two of three words
    result = transcript_errors("The old boat!", "the odd boats")
    assert result == {"cer": pytest.approx(2 / 12), "wer": pytest.approx(2 / 3)}
    assert transcript_errors("...", "anything") == {}
    assert transcript_errors("Gar-nichts", "") == {"cer": 1, "wer": 1}
    assert transcript_errors("No", "no no no no no") == {"cer": 1, "wer": 1}


def test_spoken_form_keeps_letters_of_every_script():
    assert spoken_form("It’s “Çêl” — ＡＢ 3.5,  हिन्दी!") == "its çêl ab 3 5 हिन्दी"


@pytest.mark.parametrize(
    ("language", "written", "heard"),
    [
        ("eng", "the forty-two line Bible of about fourteen fifty-five", "The 42-line bible of about 1455."),
        ("en", "Mr. Smith doesn't pay twenty dollars.", "mister smith does not pay $20"),
        ("en-us", "A page (printed by hand) [sic] sold.", "a page, printed by hand, sic, sold"),
        ("en", "fourteen sixty-nine, fourteen seventy; twenty", "1469, 1470: 20."),
        ("deu", "Es kostete 3,5 Mark.", "es kostete drei komma fünf mark"),
    ],
)
def test_spellings_of_the_same_words_are_equal(language: str, written: str, heard: str):
    assert transcript_errors(written, heard, language) == {"cer": 0, "wer": 0}
    assert transcript_errors(heard, written, language) == {"cer": 0, "wer": 0}
    assert transcript_errors(written, heard)["wer"] > 0 or language == "en-us"
