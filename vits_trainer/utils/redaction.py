"""Removal of secrets from everything that is published or logged."""

import os
import re
from pathlib import PurePath
from typing import Any, TypeVar

Value = TypeVar("Value")

HIDDEN = "[redacted]"
_SECRET_NAME = re.compile(
    r"(token|secret|passwd|password|passphrase|[_-]pwd|credentials?|authorization|signature)s?$"
    r"|passw|secret|credential|(api|access|account|private|secret|wandb|ssh|auth)[_-]?key",
    re.IGNORECASE,
)
"""Names of settings, parameters of addresses and environment variables that hold secrets."""
_SECRETS = (
    re.compile(r"hf_[A-Za-z0-9]{16,}"),  # Hugging Face
    re.compile(r"wandb_v\d_[A-Za-z0-9_]{16,}"),  # older keys look like Git commits: only redacted if in the environment
    re.compile(r"gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"),
    re.compile(r"\bsk-[A-Za-z0-9_-]{16,}"),  # OpenAI, Anthropic
    re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),  # AWS
    re.compile(r"\bAIza[A-Za-z0-9_-]{35}|\bxox[abposr]-[A-Za-z0-9-]{10,}|\bglpat-[A-Za-z0-9_-]{16,}"),
    re.compile(r"(?<=://)[^/@\s]+(?=@)"),  # user:password or a token in an address
    re.compile(r"(?i)(?<=\bbearer )[A-Za-z0-9._~+/=-]{8,}"),
)
_PARAMETER = re.compile(
    r"(?i)([?&;](?:[a-z0-9_.-]*(?:token|secret|passw(?:or)?d|signature|credential|api[_-]?key|access[_-]?key(?:id)?)|sig|key|"
    r"auth|pwd)=)[^&;#\s\"']+"
)
"""A parameter of an address, such as of a signed one, with its value."""
_SHORTEST = 8
"""Shorter values of environment variables are not redacted, because they may be ordinary words."""


def redacted(value: Value) -> Value:
    """Returns ``value`` with secrets replaced: values of secret names, known formats and secrets of the environment.

    Recurses into dictionaries, lists and tuples; paths become text if they contain a secret. Other values are returned
    unchanged.
    """
    return _redact(value, _known_secrets())  # type: ignore[no-any-return]


def _redact(value: Any, known: list[str]) -> Any:
    if isinstance(value, dict):
        return {
            _redact(key, known): _hide(inner, "token" not in key.lower())
            if isinstance(key, str) and _SECRET_NAME.search(key)
            else _redact(inner, known)
            for key, inner in value.items()
        }
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_redact(inner, known) for inner in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_redact(inner, known) for inner in value)
    if isinstance(value, PurePath):
        text = _redact_text(str(value), known)
        return value if text == str(value) else text
    return _redact_text(value, known) if isinstance(value, str) else value


def _hide(value: Any, hides_numbers: bool) -> Any:
    """Replaces everything below a secret name except what is unset, and counts of tokens."""
    if isinstance(value, dict):
        return {key: _hide(inner, hides_numbers) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_hide(inner, hides_numbers) for inner in value]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (
        HIDDEN
        if (isinstance(value, (str, bytes, PurePath)) and value != "") or (is_number and hides_numbers)
        else value
    )


def _redact_text(text: str, known: list[str]) -> str:
    for secret in known:
        text = text.replace(secret, HIDDEN)
    for pattern in _SECRETS:
        text = pattern.sub(HIDDEN, text)
    return _PARAMETER.sub(rf"\1{HIDDEN}", text)


def _known_secrets() -> list[str]:
    values = (value for name, value in os.environ.items() if _SECRET_NAME.search(name))
    return sorted({value for value in values if len(value) >= _SHORTEST}, key=len, reverse=True)
