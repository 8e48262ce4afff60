"""Conversion of configurations to dictionaries and YAML, and lookup of recipes."""

import dataclasses
import difflib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from vits_trainer.utils.errors import ConfigError, require
from vits_trainer.utils.strings import FILE_NAME, is_file_name

RECIPES_DIR = Path(__file__).parent / "recipes"


def split_names(flag: str, value: str, known: Collection[str]) -> tuple[str, ...]:
    """Splits a comma-separated ``value`` such as ``"mcd, f0"`` into names, in their order.

    Raises:
        ConfigError: a name is not in ``known``, or occurs twice.
    """
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    for name in names:
        require(name in known, f"--{flag} {value}: {name} is not one of {', '.join(known)}.")
    require(len(set(names)) == len(names), f"--{flag} {value}: contains a name twice.")
    return names


def require_run_name(name: str | None) -> None:
    """Raises :class:`ConfigError` unless ``name`` can be the name of a folder."""
    require(name is None or is_file_name(name), f"--run_name {(name or '')[:80]!r}: {FILE_NAME}.")


def expanded(flag: str, path: str) -> Path:
    """Returns the path with ``~`` and ``~user`` replaced by home directories.

    Raises:
        ConfigError: there is no such user, or the path contains a NUL character.
    """
    require("\0" not in path, f"--{flag} {path!r}: contains a NUL character.")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"--{flag} {path}: there is no such user. Give the whole path.") from error


def to_dict(config: Any) -> dict[str, Any]:
    """Converts a configuration to plain values that YAML and JSON support (tuples become lists)."""
    return {key: _plain(value) for key, value in dataclasses.asdict(config).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested dictionaries: ``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def save_config(config: Any, path: Path) -> None:
    """Writes ``config`` as YAML that ``--config`` can read."""
    path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")


def recipe_path(name_or_file: str) -> Path:
    """Returns the YAML file for a value of ``--config``: a file, or the name of a recipe of the package.

    Raises:
        ConfigError: neither exists. The message lists the recipes.
    """
    as_file = expanded("config", name_or_file)
    as_recipe = RECIPES_DIR / f"{name_or_file.removesuffix('.yaml')}.yaml"
    for candidate in (as_file, as_recipe):
        if candidate.is_file():
            return candidate
    names = sorted(path.stem for path in RECIPES_DIR.glob("*.yaml"))
    near = difflib.get_close_matches(as_recipe.stem.replace("-", "_"), names, n=1, cutoff=0.8)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise ConfigError(f"--config {name_or_file}: there is no such file or recipe. {hint}Recipes: {', '.join(names)}.")
