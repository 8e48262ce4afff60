"""Checks the files of a voice's tokenizer before transformers reads them."""

from pathlib import Path
from typing import Annotated, Any, TypedDict

from msgspec import Meta

from vits_trainer.utils.errors import ModelError
from vits_trainer.utils.records import MAX_UNTYPED_BYTES, read_json
from vits_trainer.utils.voice_files import find_voice_file

_REMEDY = "Copy the file again from the voice that it belongs to."
_TokenId = Annotated[int, Meta(ge=0, lt=2**20)]
_Token = str | dict[str, Any]
"""A symbol, or a saved ``AddedToken``."""


class _Settings(TypedDict, total=False):
    """Fields of tokenizer_config.json that are used."""

    language: str | None
    add_blank: bool
    normalize: bool
    phonemize: bool
    is_uroman: bool
    pad_token: _Token | None
    unk_token: _Token | None
    added_tokens_decoder: dict[str, dict[str, Any]]
    extra_special_tokens: dict[str, _Token] | list[_Token]
    additional_special_tokens: list[_Token] | None


class _Sizes(TypedDict, total=False):
    vocab_size: int


_TYPES: dict[str, Any] = {
    "tokenizer_config.json": _Settings,
    "special_tokens_map.json": dict[str, _Token | list[_Token]],
    "added_tokens.json": dict[str, _TokenId],
    "vocab.json": Annotated[dict[str, _TokenId], Meta(min_length=1)],
    "config.json": _Sizes,
}


def check_tokenizer_files(name_or_dir: str) -> None:
    """Checks the content of the files of a voice, and that each symbol has an embedding of its own.

    Raises:
        ModelError: a file has other content, or vocab.json is that of another voice.
        OSError: the voice cannot be found.
    """
    contents: dict[str, Any] = {}
    for name, kind in _TYPES.items():
        path = find_voice_file(name_or_dir, name)
        if path is not None:
            contents[name] = path, read_json(path, kind, ModelError, _REMEDY, max_bytes=MAX_UNTYPED_BYTES)
    if "vocab.json" in contents:
        path, ids = contents["vocab.json"]
        _, sizes = contents.get("config.json", (None, {}))
        _require_embeddings(path, ids, sizes.get("vocab_size"))


def _require_embeddings(path: Path, ids: dict[str, int], embeddings: int | None) -> None:
    if len(set(ids.values())) < len(ids):
        raise ModelError(f"{path}: two symbols have the same id. {_REMEDY}")
    symbol, largest = max(ids.items(), key=lambda item: item[1])
    if embeddings is not None and largest >= embeddings:
        raise ModelError(
            f"{path}: {symbol!r} has id {largest}, but the voice has {embeddings} embeddings: these are the symbols of "
            f"another voice. {_REMEDY}"
        )
