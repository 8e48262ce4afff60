"""Tokenizers: vocabulary, encoding, saving and loading."""

import json

import pytest

from vits_trainer.text.tokenizer import build_tokenizer, encode, load_tokenizer
from vits_trainer.utils.errors import ModelError


def test_ids_are_characters_between_blanks():
    tokenizer = build_tokenizer(["ba", "c a"])
    assert tokenizer.get_vocab() == {"<pad>": 0, " ": 1, "a": 2, "b": 3, "c": 4, "<unk>": 5}
    assert encode(tokenizer, "cab").tolist() == [0, 4, 0, 2, 0, 3, 0]


def test_upper_case_is_lowercased():
    tokenizer = build_tokenizer(["Şev"])
    assert encode(tokenizer, "ŞEV").tolist() == encode(tokenizer, "şev").tolist()
    assert len(encode(tokenizer, "şev")) == 7


def test_characters_that_the_vocabulary_lacks_are_dropped():
    tokenizer = build_tokenizer(["ab"])
    assert encode(tokenizer, "a€b!").tolist() == encode(tokenizer, "ab").tolist()


@pytest.mark.parametrize("text", ["", "€!?", "  "])
def test_text_without_known_characters_has_no_tokens(text):
    ids = encode(build_tokenizer(["ab"]), text)
    assert ids.shape == (0,)
    assert ids.dtype == "int64"


def test_texts_of_the_vocabulary_are_encoded_completely():
    texts = ["Rojbaş, çawa yî?", "Êvar xweş", "na-na « êê »"]
    tokenizer = build_tokenizer(texts)
    for text in texts:
        assert tokenizer.unk_token_id not in encode(tokenizer, text)
        assert len(encode(tokenizer, text)) == 2 * len(text) + 1


def test_vocabulary_does_not_depend_on_the_order_of_texts():
    assert build_tokenizer(["ab", "cd"]).get_vocab() == build_tokenizer(["dc", "ba"]).get_vocab()


def test_saved_tokenizer_round_trips(tmp_path):
    tokenizer = build_tokenizer(["silav, dinya"])
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert encode(loaded, "silav").tolist() == encode(tokenizer, "silav").tolist()


def test_folder_without_vocabulary_raises(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vits"}))
    with pytest.raises(ModelError, match=r"no tokenizer could be loaded .*vocab\.json"):
        load_tokenizer(str(tmp_path))


def test_damaged_vocabulary_raises(tmp_path):
    build_tokenizer(["ab"]).save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text("{broken")
    with pytest.raises(ModelError, match=r"vocab\.json: cannot be read"):
        load_tokenizer(str(tmp_path))
