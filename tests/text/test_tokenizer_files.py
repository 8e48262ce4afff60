"""Files of tokenizers that do not fit the voice."""

import json
from pathlib import Path

import pytest

from vits_trainer.text.tokenizer import build_tokenizer, load_tokenizer
from vits_trainer.utils.errors import ModelError


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", {"a": 0, "b": 4}, "'b' has id 4, but the voice has 4 embeddings"),
        ("vocab.json", {"a": -1}, "expected int >= 0"),
        ("vocab.json", {"a": 1, "b": 1}, "two symbols have the same id"),
        ("vocab.json", {"a": "1"}, "expected int, found str"),
        ("vocab.json", {}, "length >= 1"),
        ("vocab.json", [], "expected object, found array"),
        ("tokenizer_config.json", {"language": 5}, "field language: expected str | null, found int"),
        ("tokenizer_config.json", {"add_blank": "yes"}, "field add_blank: expected bool"),
        ("special_tokens_map.json", {"pad_token": 5}, ", found int"),
        ("added_tokens.json", {"<x>": -5}, "expected int >= 0"),
    ],
)
def test_other_content_is_named(tmp_path: Path, name: str, content: object, message: str) -> None:
    build_tokenizer(["ab"]).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vits", "vocab_size": 4}))
    assert load_tokenizer(str(tmp_path)).encoder == {"<pad>": 0, "a": 1, "b": 2, "<unk>": 3}
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(ModelError) as error:
        load_tokenizer(str(tmp_path))
    assert name in str(error.value)
    assert message in str(error.value)
