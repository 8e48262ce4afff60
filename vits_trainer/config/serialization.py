"""Configurations as plain data, flat names and YAML; recipes by name."""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from vits_trainer.utils.errors import ConfigError, require

RECIPES_DIR = Path(__file__).parent / "recipes"


def listed(flag: str, words: str, known: Collection[str]) -> tuple[str, ...]:
    """``"mcd, f0"`` as its words, in their order.

    Raises:
        ConfigError: one is not among ``known``, or comes twice.
    """
    found = tuple(word.strip() for word in words.split(",") if word.strip())
    for word in found:
        require(word in known, f"--{flag} {words}: {word} is none of {', '.join(known)}.")
    require(len(set(found)) == len(found), f"--{flag} {words}: one comes twice.")
    return found


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain values that YAML and JSON hold (tuples become lists)."""
    return {key: _plain(value) for key, value in dataclasses.asdict(config).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one: ``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def save_config(config: Any, path: Path) -> None:
    """Writes ``config`` as YAML that ``--config`` reads back."""
    path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")


def recipe_path(name_or_file: str) -> Path:
    """The YAML file that ``--config`` means: a file, or the name of a recipe that comes with the package.

    Raises:
        ConfigError: neither exists; names the recipes.
    """
    as_file = Path(name_or_file).expanduser()
    as_recipe = RECIPES_DIR / f"{name_or_file.removesuffix('.yaml')}.yaml"
    for candidate in (as_file, as_recipe):
        if candidate.is_file():
            return candidate
    names = ", ".join(sorted(path.stem for path in RECIPES_DIR.glob("*.yaml")))
    raise ConfigError(f"--config {name_or_file}: no such file, and no recipe of that name. Recipes: {names}.")
