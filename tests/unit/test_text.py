"""From text to token ids."""

import json

import pytest
from transformers import VitsTokenizer

from vits_trainer.errors import ModelError
from vits_trainer.text import build_tokenizer, encode, extended, load_tokenizer, missing_characters, spoken_form


def test_ids_are_characters_between_blanks():
    tokenizer = build_tokenizer(["ba", "c a"])
    assert tokenizer.get_vocab() == {"<pad>": 0, " ": 1, "a": 2, "b": 3, "c": 4, "<unk>": 5}
    assert encode(tokenizer, "cab").tolist() == [0, 4, 0, 2, 0, 3, 0]


def test_upper_case_is_lowered():
    tokenizer = build_tokenizer(["Şev"])
    assert encode(tokenizer, "ŞEV").tolist() == encode(tokenizer, "şev").tolist()
    assert len(encode(tokenizer, "şev")) == 7


def test_characters_that_the_vocabulary_lacks_are_left_out():
    tokenizer = build_tokenizer(["ab"])
    assert encode(tokenizer, "a€b!").tolist() == encode(tokenizer, "ab").tolist()


@pytest.mark.parametrize("text", ["", "€!?", "  "])
def test_text_without_a_known_character_gives_no_token(text):
    ids = encode(build_tokenizer(["ab"]), text)
    assert ids.shape == (0,)
    assert ids.dtype == "int64"


def test_every_text_of_the_data_set_is_encoded_whole():
    texts = ["Rojbaş, çawa yî?", "Êvar xweş", "na-na « êê »"]
    tokenizer = build_tokenizer(texts)
    for text in texts:
        assert tokenizer.unk_token_id not in encode(tokenizer, text)
        assert len(encode(tokenizer, text)) == 2 * len(text) + 1


def test_vocabulary_does_not_depend_on_the_order_of_texts():
    assert build_tokenizer(["ab", "cd"]).get_vocab() == build_tokenizer(["dc", "ba"]).get_vocab()


def test_saved_tokenizer_is_loaded_again(tmp_path):
    tokenizer = build_tokenizer(["silav, dinya"])
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert encode(loaded, "silav").tolist() == encode(tokenizer, "silav").tolist()


def test_folder_without_vocabulary_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vits"}))
    with pytest.raises(ModelError, match=r"no tokenizer could be loaded .*vocab\.json"):
        load_tokenizer(str(tmp_path))


def test_damaged_vocabulary_is_refused(tmp_path):
    build_tokenizer(["ab"]).save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text("{broken")
    with pytest.raises(ModelError, match="no tokenizer could be loaded"):
        load_tokenizer(str(tmp_path))


def like_mms(folder, characters="_ab de", **settings):
    """As MMS-TTS's tokenizers lie on the Hub: <unk> has no entry in vocab.json, and its id is behind all others."""
    folder.mkdir()
    vocabulary = {character: index for index, character in enumerate(characters)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    given = {"tokenizer_class": "VitsTokenizer", "pad_token": characters[0], "unk_token": "<unk>", "language": "eng"}
    given |= {"phonemize": False, "normalize": True, "add_blank": True, "is_uroman": False, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(given))
    return load_tokenizer(str(folder))


def test_ids_of_letters_are_transformers_own():
    tokenizer = build_tokenizer(["abc äöü ß"])
    for text in ("Abc ÄÖÜ", " a  b ", "x!ß?", "<pad>a", "a<unk>b"):
        assert encode(tokenizer, text).tolist() == tokenizer(text).input_ids


def test_missing_characters_are_counted_with_their_first_example():
    missing = missing_characters(build_tokenizer(["ab "]), ["abba", "Äb ä!", "ä1", "b1"])
    found = [(m.character, m.times, m.example) for m in missing]
    assert found == [("ä", 3, "Äb ä!"), ("1", 2, "ä1"), ("!", 1, "Äb ä!")]
    assert str(missing[0]) == "ä (U+00E4 LATIN SMALL LETTER A WITH DIAERESIS) 3 times"


def test_characters_that_are_missing_are_those_that_get_no_id(tmp_path):
    tokenizer = like_mms(tmp_path / "voice")
    for character in "aAäÄ1.İ ß\u0301":
        known = encode(tokenizer, f"a{character}a").size == 7
        lacking = {m.character for m in missing_characters(tokenizer, [character])}
        assert known != bool(lacking) or character == "İ"  # İ becomes i and a dot; both are lacking
    assert {m.character for m in missing_characters(tokenizer, ["İ"])} == {"i", "\u0307"}


def test_romanian_letter_is_known_in_both_spellings_as_transformers_has_it(tmp_path):
    tokenizer = like_mms(tmp_path / "voice", "_aţ ", language="ron")
    assert missing_characters(tokenizer, ["aț"]) == []
    assert encode(tokenizer, "aț").tolist() == [0, 1, 0, 2, 0]


@pytest.mark.parametrize("own", [build_tokenizer(["ab de"]), None], ids=["built here", "of MMS-TTS"])
def test_extended_vocabulary_keeps_every_id_and_goes_round_through_transformers(own, tmp_path):
    tokenizer = own or like_mms(tmp_path / "voice")
    grown = extended(tokenizer, ["ä", "ß"])
    assert tokenizer.get_vocab().items() <= grown.get_vocab().items()
    grown.save_pretrained(tmp_path / "grown")
    plain = VitsTokenizer.from_pretrained(tmp_path / "grown")
    assert plain.get_vocab() == grown.get_vocab()
    ids = plain("Baß ä").input_ids[1::2]
    assert ids == encode(grown, "Baß ä")[1::2].tolist()
    assert ids == [tokenizer.encoder[c] for c in "ba"] + [len(tokenizer) + 1, tokenizer.encoder[" "], len(tokenizer)]
    assert plain.decode(plain("baß ä").input_ids) == "baß ä"
    assert plain.unk_token_id == tokenizer.unk_token_id


def test_language_and_numbers_are_saved_with_the_voice_and_read_again(tmp_path):
    pytest.importorskip("num2words", reason="numbers as words need num2words")
    tokenizer = build_tokenizer(["siebzehn katzen 0123456789"])
    tokenizer.save_pretrained(tmp_path / "plain")
    german = load_tokenizer(str(tmp_path / "plain"), "deu", spell_numbers=True)
    german.save_pretrained(tmp_path / "german")
    again = load_tokenizer(str(tmp_path / "german"))
    assert again.language == "deu"
    assert encode(again, "17 Katzen").tolist() == encode(tokenizer, "siebzehn katzen").tolist()
    assert encode(load_tokenizer(str(tmp_path / "plain")), "17 Katzen").size == 2 * len("17 Katzen") + 1


def test_new_vocabulary_holds_the_words_of_the_numbers():
    pytest.importorskip("num2words", reason="numbers as words need num2words")
    tokenizer = build_tokenizer(["17"], language="de", spell_numbers=True)
    assert set(tokenizer.encoder) == {"<pad>", "<unk>", *"siebzehn"}


def test_phonemes_are_looked_up_in_the_voices_language(tmp_path):
    pytest.importorskip("phonemizer", reason="phonemes need phonemizer-fork")
    texts = ["Schöne Wörter, ich spreche.", "Guten Tag!"]
    tokenizer = build_tokenizer(texts, language="deu", phonemize=True)
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert spoken_form(again, "schöne") == "ʃˈøːnə"
    assert missing_characters(again, texts) == []
    assert {"ø", "ç", ","} <= again.get_vocab().keys()
    assert "w" not in again.get_vocab()
    # As plain transformers takes phonemes that one has made oneself.
    plain = VitsTokenizer.from_pretrained(tmp_path, phonemize=False)
    for text in texts:
        assert encode(again, text).tolist() == plain(spoken_form(again, text)).input_ids
        assert again.unk_token_id not in encode(again, text)


def test_american_phonemes_are_those_that_transformers_makes():
    pytest.importorskip("phonemizer", reason="phonemes need phonemizer-fork")
    text = "The rain fell softly, didn't it? Yes."
    tokenizer = build_tokenizer([text], phonemize=True)
    assert encode(tokenizer, text).tolist() == tokenizer(text).input_ids


def test_phonemes_that_the_vocabulary_lacks_are_left_out_and_said():
    pytest.importorskip("phonemizer", reason="phonemes need phonemizer-fork")
    tokenizer = build_tokenizer(["Guten Tag"], language="de", phonemize=True)
    assert "ø" in {m.character for m in missing_characters(tokenizer, ["schöne"])}
    assert tokenizer.unk_token_id not in encode(tokenizer, "schöne")


def test_romanised_texts_have_transformers_own_ids(tmp_path):
    pytest.importorskip("uroman", reason="romanisation needs uroman")
    tokenizer = like_mms(tmp_path / "voice", "_abcdefghijklmnopqrstuvwxyz ", is_uroman=True)
    assert encode(tokenizer, "Привет, мир").tolist() == tokenizer("Привет, мир").input_ids
    assert tokenizer.decode(encode(tokenizer, "Привет")) == "privet"
    assert [m.character for m in missing_characters(tokenizer, ["Привет!", "мир"])] == ["!"]
