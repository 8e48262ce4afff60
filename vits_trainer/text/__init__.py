"""Texts to tokens."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vits_trainer.text.tokenizer import load_tokenizer

__all__ = ["load_tokenizer"]


def __getattr__(name: str) -> Any:
    """``from vits_trainer.text import load_tokenizer`` stands in published model cards; loaded only when asked for."""
    if name == "load_tokenizer":
        from vits_trainer.text.tokenizer import load_tokenizer  # noqa: PLC0415 - it loads transformers

        return load_tokenizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
