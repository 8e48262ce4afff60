"""Text processing: normalization, phonemes and tokens."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vits_trainer.text.tokenizer import load_tokenizer

__all__ = ["load_tokenizer"]


def __getattr__(name: str) -> Any:
    """Imports ``load_tokenizer`` lazily. Published model cards contain ``from vits_trainer.text import
    load_tokenizer``."""
    if name == "load_tokenizer":
        from vits_trainer.text.tokenizer import load_tokenizer  # noqa: PLC0415 - imports transformers

        return load_tokenizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
