"""Parsing of command lines: defaults, then ``--config``, then flags. Every mistake gives a one-line error."""

import argparse
import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import jsonargparse
import yaml
from jsonargparse import _loaders_dumpers

from vits_trainer.config import aliases
from vits_trainer.config.options import SCORES, TRACKERS
from vits_trainer.config.serialization import recipe_path
from vits_trainer.config.train import VALIDATION_LOSSES
from vits_trainer.utils.errors import ConfigError
from vits_trainer.utils.records import check_yaml_events, read_yaml

Config = TypeVar("Config")

_CLOSE = 0.8
"""Similarity from which on a name is suggested; a wrong suggestion is worse than none."""

_PARSING_ERRORS = (
    argparse.ArgumentError, jsonargparse.ArgumentError, AttributeError, TypeError, ValueError, ArithmeticError,
    LookupError, RecursionError, yaml.YAMLError,
)  # fmt: skip
"""Exceptions of jsonargparse 4.53 for invalid values; AttributeError for a key such as config.0."""

_YamlLoader: Any = _loaders_dumpers.get_yaml_default_loader()  # type: ignore[no-untyped-call]


class _LimitedLoader(_YamlLoader):  # type: ignore[misc]
    """Refuses aliases and tags also in files that flags and other files refer to."""

    def __init__(self, stream: str) -> None:
        check_yaml_events(stream)
        super().__init__(stream)


_loaders_dumpers.yaml_default_loader = _LimitedLoader  # type: ignore[assignment]

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


def parse(command: str, config_class: type[Config], argv: Sequence[str]) -> Config:
    """Parses the arguments of ``command`` into a ``config_class``. ``--help`` prints the help and exits.

    Raises:
        ConfigError: a flag or key is unknown (the message suggests the closest one), or a value has the wrong type or
            range.
    """
    fields = {field.name: field for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    parser = jsonargparse.ArgumentParser(
        prog=f"vits-trainer {command}",
        usage=f"vits-trainer {command} [--config RECIPE] [FLAGS]",
        description=config_class.__doc__,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="Name of a recipe, or a YAML file with any of these flags.")
    parser.add_class_arguments(config_class)
    _group_help(parser, config_class)
    _fill_choices(parser)
    if "precision" in fields:
        parser.add_argument("--fp16", type=bool, default=False, help="Same as --precision fp16.")
    expanded = _expand_booleans(_expand_positional(_expand_short_names(argv, fields), fields), fields)
    args = _config_first(expanded)
    files = [value for flag, value in pairwise(args) if flag == "--config"]
    for file in files:  # jsonargparse expands aliases without a limit
        read_yaml(Path(file), ConfigError, "Correct the file.")
    try:
        namespace = parser.parse_args(args)
        values = parser.instantiate(namespace).as_dict()
    except _PARSING_ERRORS as error:
        raise ConfigError(_explain(command, str(error), parser, files, argv)) from error
    values.pop("config", None)
    if values.pop("fp16", False):
        if values["precision"] not in ("auto", "fp16"):
            raise ConfigError(f"--fp16 and --precision {values['precision']} exclude each other: give only one.")
        values["precision"] = "fp16"
    _reject_nulls(command, config_class, values)
    return config_class(**values)


def _group_help(parser: jsonargparse.ArgumentParser, config_class: type) -> None:
    """Divides the flags of the help into the sections that the configuration names by their first fields."""
    sections: Mapping[str, str] = getattr(config_class, "HELP_SECTIONS", {})
    common: Sequence[str] = getattr(config_class, "COMMON_FLAGS", ())
    if not sections:
        return
    every = next(
        group for group in parser._action_groups if any(action.dest in sections for action in group._group_actions)
    )
    nested = [group for group in parser._action_groups[2:] if group is not every]
    actions = every._group_actions
    every.title = "most used"
    every._group_actions = [action for name in common for action in actions if action.dest == name]
    section = every
    for action in actions:
        if action.dest in sections:
            section = parser.add_argument_group(sections[action.dest])
        if action.dest not in common:
            section._group_actions.append(action)
    parser._action_groups = [group for group in parser._action_groups if group not in nested] + nested


def _fill_choices(parser: jsonargparse.ArgumentParser) -> None:
    """Fills the names of losses, scores and trackers into the help, so that a new one is declared in one place."""
    choices = {
        "{scores}": SCORES,
        "{metrics}": [metric for metrics in SCORES.values() for metric in metrics],
        "{losses}": VALIDATION_LOSSES,
        "{trackers}": TRACKERS,
    }
    for action in parser._actions:
        for placeholder, names in choices.items():
            action.help = (action.help or "").replace(placeholder, ", ".join(names))


def _reject_nulls(command: str, config_class: type, values: Mapping[str, Any], prefix: str = "") -> None:
    """Raises for null in fields whose type lacks None, which jsonargparse accepts."""
    hints = get_type_hints(config_class)
    for name in (field.name for field in dataclasses.fields(config_class)):
        value, kind = values[name], hints[name]
        if value is None and type(None) not in get_args(kind):
            raise ConfigError(f"{command}: --{prefix}{name} null: give a value, or leave the flag out for the default.")
        if dataclasses.is_dataclass(value):
            _reject_nulls(command, type(value), vars(value), f"{prefix}{name}.")


def unknown_name_message(kind: str, name: str, known: Sequence[str]) -> str:
    """Returns ``unknown key batch_sise: did you mean batch_size?``, or lists ``known`` if none is close."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=_CLOSE)
    return f"unknown {kind} {name}: " + (f"did you mean {near[0]}?" if near else f"must be one of {', '.join(known)}.")


def unknown_flag_message(command: str, flag: str, argv: Sequence[str], known: Sequence[str]) -> str:
    """Returns what the flag is called here, by the names of other trainers before similarity, with its value."""
    name = flag.lstrip("-").replace("-", "_")
    if name in aliases.EXPLANATIONS:
        return f"unknown flag {flag}: {aliases.EXPLANATIONS[name]}."
    ours = aliases.FLAGS.get(name, f"--{name}")
    if ours.partition(" ")[0] not in known:
        near = difflib.get_close_matches(f"--{name}", known, n=1, cutoff=_CLOSE)
        if not near:
            return f"unknown flag {flag}. See vits-trainer {command} --help."
        ours = near[0]
    value = _value_of(flag, argv)
    return f"unknown flag {flag}: did you mean {ours}{f' {value}' if value and ' ' not in ours else ''}?"


def _value_of(flag: str, argv: Sequence[str]) -> str:
    for arg, following in pairwise([*argv, "--"]):
        if arg == flag:
            return "" if following.startswith("--") else following
        if arg.startswith(f"{flag}="):
            return arg.partition("=")[2]
    return ""


def _config_first(argv: list[str]) -> list[str]:
    """Moves ``--config VALUE`` to the front, so that flags override the file in any order; resolves recipe names."""
    first, rest = [], []
    args = iter(argv)
    for arg in args:
        if arg == "--config" or arg.startswith("--config="):
            value = arg.partition("=")[2] if "=" in arg else next(args, None)
            if value is None:
                raise ConfigError("--config: give the name of a recipe or a YAML file.")
            first += ["--config", str(recipe_path(value))]
        else:
            rest.append(arg)
    return first + rest


def _expand_short_names(argv: Sequence[str], fields: dict[str, Any]) -> list[str]:
    """Replaces flags such as ``--from`` with the names of their fields, which cannot be Python keywords."""
    full = {f"--{field.metadata['short']}": f"--{name}" for name, field in fields.items() if "short" in field.metadata}
    split = [arg.partition("=") for arg in argv]
    return [full.get(flag, flag) + equals + value for flag, equals, value in split]


def _expand_positional(argv: list[str], fields: dict[str, Any]) -> list[str]:
    """Turns a leading positional argument into the flag of the only field without a default."""
    required = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
    if not required:
        return argv
    if argv and not argv[0].startswith("-"):
        return [f"--{required[0]}", *argv]
    if not {f"--{required[0]}", "--help", "-h"} & {arg.partition("=")[0] for arg in argv}:
        example = fields[required[0]].metadata.get("example", required[0].upper())
        raise ConfigError(f"give the {required[0]} first, such as {example}.")
    return argv


def _expand_booleans(argv: list[str], fields: dict[str, Any]) -> list[str]:
    """Turns ``--flag`` of a boolean field into ``--flag true``."""
    booleans = {f"--{name}" for name, field in fields.items() if field.type is bool} | {"--fp16"}
    expanded = []
    for arg, following in pairwise([*argv, "--"]):
        if arg == "--push_to_hub" and following.startswith("--"):
            raise ConfigError("--push_to_hub: give the name on the Hub, as owner/name.")
        expanded.append(arg)
        if arg in booleans and following.startswith("--"):
            expanded.append("true")
    return expanded


def _explain(
    command: str, message: str, parser: jsonargparse.ArgumentParser, files: Sequence[str], argv: Sequence[str]
) -> str:
    where = f"{', '.join(files)}: " if files else ""
    flags = sorted(option for action in parser._actions for option in action.option_strings if option.startswith("--"))
    unknown = re.search(r"unrecognized arguments: (\S+)", message)
    if unknown:
        name = unknown.group(1).partition("=")[0]
        if not name.startswith("-"):
            return f"{command}: unexpected argument {name!r}. See vits-trainer {command} --help."
        return f"{command}: {unknown_flag_message(command, name, argv, flags)}"
    unknown = re.search(r"(?:Group '(?P<group>[\w.]+)' does not accept option|Option) '(?P<key>[\w.]+)'", message)
    if unknown:
        key = ".".join(part for part in (unknown["group"], unknown["key"]) if part)
        return f"{command}: {where}{unknown_name_message('key', key, [flag.removeprefix('--') for flag in flags])}"
    value = re.search(r'Parser key "([\w.]+)":\s*(.*)', message, re.DOTALL)
    if value:
        reason = " ".join(re.sub(r"<class '(\w+)'>", r"\1", value.group(2)).split())
        return f"{command}: --{value.group(1)}: {reason}"
    return f"{command}: {where}{' '.join(message.split())}"
