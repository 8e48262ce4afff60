"""Ids of code points: merged as in the graph, a text has the tokenizer's ids."""

import unicodedata

import pytest

from vits_trainer.models.conversion.player_symbols import DROPPED, PlayerSymbols, player_symbols
from vits_trainer.text.tokenizer import VoiceTokenizer, build_tokenizer, encode, tokenizer_from_symbols

KURDISH = build_tokenizer(["silav dinya çawa yî? ez baş im, rêya dûr."], "kmr-script_latin")
VIETNAMESE = build_tokenizer(["tiếng việt ệ ễ ơ ở đ a e i o"], "vie")
TURKISH = build_tokenizer(["ılık iğne ağaç şu"], "tur")
HANGUL = build_tokenizer(["한국어 말 하다"], "ko-native")
MMS = tokenizer_from_symbols([*"kiçc ş̧", "'"])  # id 0 is a letter, too


def merged(symbols: PlayerSymbols, text: str) -> list[int]:
    """Merges as the graph does, in plain Python."""
    ids = [symbols.ids[one] for one in text if one in symbols.ids]
    if symbols.needs_graph:
        ids = [index for index in ids if index != symbols.sentence_id]
        for _ in range(symbols.passes):
            kept: list[int] = []
            previous = None
            for index in ids:
                if (previous, index) in symbols.merges:
                    kept[-1] = symbols.merges[previous, index]
                    previous = None
                else:
                    kept.append(index)
                    previous = index
            ids = kept
        ids = [symbols.final_ids[index] for index in ids]
    found = [index for index in ids if index != DROPPED]
    return [0, *(one for index in found for one in (index, 0))]


@pytest.mark.parametrize(
    ("tokenizer", "text"),
    [
        (KURDISH, "Silav dinya! Çawa yî? EZ BAŞ IM, ÊÎŞÛÇ rêya dûr"),
        (KURDISH, "ā é ñ ’ ç"),
        (VIETNAMESE, "Tiếng Việt: Ệ Ễ Ở ế ô ơ"),
        (TURKISH, "Ilık İğne AĞAÇ ŞU ı i"),
        (HANGUL, "한국어 말 하다 한"),
        (MMS, "ikç c'ş Çki"),
    ],
    ids=["Kurdish", "foreign marks", "Vietnamese", "Turkish", "Hangul", "letter of id 0"],
)
def test_decomposed_and_composed_texts_have_the_ids_of_the_tokenizer(tokenizer: VoiceTokenizer, text: str) -> None:
    symbols = player_symbols(tokenizer, len(tokenizer))
    expected = encode(tokenizer, text).tolist()
    assert len(expected) > 5
    assert merged(symbols, unicodedata.normalize("NFD", text)) == expected  # Piper
    assert merged(symbols, unicodedata.normalize("NFC", text)) == expected  # sherpa-onnx


def test_plain_letters_need_no_graph_and_keep_their_ids() -> None:
    tokenizer = build_tokenizer(["silav dinya"])
    symbols = player_symbols(tokenizer, len(tokenizer))
    assert not symbols.needs_graph
    assert not symbols.merges
    assert len(symbols.final_ids) == len(tokenizer)
    assert {name: symbols.ids[name] for name in "silavdny"} == {name: tokenizer.encoder[name] for name in "silavdny"}
    assert symbols.ids["S"] == tokenizer.encoder["s"]


def test_symbols_without_an_embedding_are_left_out() -> None:
    tokenizer = build_tokenizer(["silav dinya"])
    assert "v" in tokenizer.encoder
    symbols = player_symbols(tokenizer, tokenizer.encoder["v"])
    assert "v" not in symbols.ids
