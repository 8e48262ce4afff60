"""From ``argv`` to a configuration: defaults < ``--config`` < flags, and one clear line for whatever is wrong."""

import argparse
import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar, get_args, get_type_hints

import jsonargparse

from vits_trainer.config.serialization import recipe_path
from vits_trainer.utils.errors import ConfigError

Config = TypeVar("Config")

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


def parse(command: str, config_class: type[Config], argv: Sequence[str]) -> Config:
    """Reads the flags of ``command`` into a ``config_class``. ``--help`` prints and exits.

    Raises:
        ConfigError: an unknown flag or key (the nearest one is named), or a value of the wrong type or range.
    """
    fields = {field.name: field for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    parser = jsonargparse.ArgumentParser(
        prog=f"vits-trainer {command}", description=config_class.__doc__, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--config", action="config", help="A recipe's name or a YAML file with any of these flags.")
    parser.add_class_arguments(config_class)
    if "precision" in fields:
        parser.add_argument("--fp16", action="store_true", help="The same as --precision fp16.")
    spelled = _spell_out_booleans(_name_first_word(_in_full(argv, fields), fields), fields)
    words = _config_first(spelled)
    files = [value for flag, value in pairwise(words) if flag == "--config"]
    try:
        namespace = parser.parse_args(words)
        values = parser.instantiate(namespace).as_dict()
    except (argparse.ArgumentError, jsonargparse.ArgumentError, AttributeError, TypeError, ValueError) as error:
        # AttributeError: of jsonargparse 4.53 itself, for a file with a key such as config.0.
        raise ConfigError(_explain(command, str(error), parser, files)) from error
    values.pop("config", None)
    if values.pop("fp16", False):
        if values["precision"] not in ("auto", "fp16"):
            raise ConfigError(f"--fp16 and --precision {values['precision']} contradict one another: give one of them.")
        values["precision"] = "fp16"
    _refuse_nulls(command, config_class, values)
    return config_class(**values)


def _refuse_nulls(command: str, config_class: type, values: Mapping[str, Any], prefix: str = "") -> None:
    """jsonargparse takes null for anything; here it must be among the field's types."""
    for name, kind in get_type_hints(config_class).items():
        value = values[name]
        if value is None and type(None) not in get_args(kind):
            raise ConfigError(f"{command}: --{prefix}{name} null: give a value, or leave it out for the default.")
        if dataclasses.is_dataclass(value):
            _refuse_nulls(command, type(value), vars(value), f"{prefix}{name}.")


def unknown_word(kind: str, word: str, known: Sequence[str]) -> str:
    """``unknown flag --batch_sise: did you mean --batch_size?``, or the list of what is known."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"unknown {kind} {word}: " + (f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}.")


def _config_first(argv: list[str]) -> list[str]:
    """Moves ``--config VALUE`` to the front, as a flag wins over the file wherever it stands; resolves recipe names."""
    first, rest = [], []
    words = iter(argv)
    for word in words:
        if word == "--config" or word.startswith("--config="):
            value = word.partition("=")[2] if "=" in word else next(words, None)
            if value is None:
                raise ConfigError("--config: give a recipe's name or a YAML file.")
            first += ["--config", str(recipe_path(value))]
        else:
            rest.append(word)
    return first + rest


def _in_full(argv: Sequence[str], fields: dict[str, Any]) -> list[str]:
    """Flags by their fields' names, which cannot be words of Python's such as ``from``."""
    full = {f"--{field.metadata['short']}": f"--{name}" for name, field in fields.items() if "short" in field.metadata}
    split = [word.partition("=") for word in argv]
    return [full.get(flag, flag) + equals + value for flag, equals, value in split]


def _name_first_word(argv: list[str], fields: dict[str, Any]) -> list[str]:
    """``WORD`` in the first place means the command's one setting that has no default."""
    required = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
    if not required:
        return argv
    if argv and not argv[0].startswith("-"):
        return [f"--{required[0]}", *argv]
    if not {f"--{required[0]}", "--help", "-h"} & {word.partition("=")[0] for word in argv}:
        example = fields[required[0]].metadata.get("example", required[0].upper())
        raise ConfigError(f"give the {required[0]} first, such as {example}.")
    return argv


def _spell_out_booleans(argv: list[str], fields: dict[str, Any]) -> list[str]:
    """``--flag`` of a true-or-false field means ``--flag true``."""
    booleans = {f"--{name}" for name, field in fields.items() if field.type is bool}
    spelled = []
    for word, following in pairwise([*argv, "--"]):
        spelled.append(word)
        if word in booleans and following.startswith("--"):
            spelled.append("true")
    return spelled


def _explain(command: str, message: str, parser: jsonargparse.ArgumentParser, files: Sequence[str]) -> str:
    where = f"{', '.join(files)}: " if files else ""
    flags = sorted(option for action in parser._actions for option in action.option_strings if option.startswith("--"))
    unknown = re.search(r"unrecognized arguments: (\S+)", message)
    if unknown:
        word = unknown.group(1).partition("=")[0]
        if not word.startswith("-"):
            return f"{command}: {word!r} belongs to no flag. See vits-trainer {command} --help."
        return f"{command}: {unknown_word('flag', word, flags)}"
    unknown = re.search(r"(?:Group '(?P<group>[\w.]+)' does not accept option|Option) '(?P<key>[\w.]+)'", message)
    if unknown:
        key = ".".join(part for part in (unknown["group"], unknown["key"]) if part)
        return f"{command}: {where}{unknown_word('key', key, [flag.removeprefix('--') for flag in flags])}"
    value = re.search(r'Parser key "([\w.]+)":\s*(.*)', message, re.DOTALL)
    if value:
        reason = " ".join(re.sub(r"<class '(\w+)'>", r"\1", value.group(2)).split())
        return f"{command}: --{value.group(1)}: {reason}"
    return f"{command}: {where}{' '.join(message.split())}"
