"""Parsing of command lines: defaults, then ``--config``, then flags. Every mistake gives a one-line error."""

import argparse
import dataclasses
import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import jsonargparse
import yaml
from jsonargparse import _loaders_dumpers

from vits_trainer.config import aliases
from vits_trainer.config.options import SCORES, TRACKERS
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.config.serialization import recipe_path
from vits_trainer.config.train import VALIDATION_LOSSES, TrainConfig
from vits_trainer.config.voices import EvaluateConfig, SynthesizeConfig
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

_COMMANDS: dict[str, Any] = {
    "prepare_data": PrepareConfig,
    "train_vits": TrainConfig,
    "synthesize": SynthesizeConfig,
    "evaluate": EvaluateConfig,
}
"""Commands whose flags are typed after another command."""

_PLAIN_WORDS = {
    "Expected a int": "must be a whole number",
    "Expected a float": "must be a number",
    "Expected a bool": "must be true or false",
    "unrecognized arguments:": "unexpected argument, as it follows no flag:",
}
"""Phrases of jsonargparse's messages."""

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
    _accept_short_forms(parser, fields)
    files, flags = _split_config(argv)
    flags = _join_several(flags, fields)
    _reject_unknown_flags(command, parser, flags)
    for file in files:  # jsonargparse expands aliases without a limit
        _reject_unknown_keys(command, parser, file, read_yaml(Path(file), ConfigError, "Correct the file."))
    args = [arg for file in files for arg in ("--config", file)] + _expand_positional(flags, fields)
    try:
        namespace = parser.parse_args(args)
        values = parser.instantiate(namespace).as_dict()
    except _PARSING_ERRORS as error:
        raise ConfigError(f"{command}: {_readable(str(error), files)}") from error
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


def _close_matches(name: str, known: Sequence[str]) -> list[str]:
    same_depth = [other for other in known if other.count(".") == name.count(".") and not other.endswith(".help")]
    return difflib.get_close_matches(name, same_depth, n=1, cutoff=_CLOSE)


def unknown_name_message(kind: str, name: str, known: Sequence[str], otherwise: str = "") -> str:
    """Returns ``unknown key batch_sise: did you mean batch_size?``; if none is close, ``otherwise`` or all names."""
    near = _close_matches(name, known)
    shown = name if name.isprintable() and 0 < len(name) < 100 else ascii(name[:100])
    otherwise = otherwise or f"must be one of {', '.join(known)}."
    return f"unknown {kind} {shown}: " + (f"did you mean {near[0]}?" if near else otherwise)


def unknown_flag_message(
    command: str, flag: str, known: Sequence[str], value: str = "", fits: Callable[[str, str], bool] = lambda *_: True
) -> str:
    """Returns what the flag is called here: by the names of other trainers, in another command, or by similarity.

    Args:
        command: the flag was given to it.
        flag: as typed.
        known: flags of the command.
        value: of the flag.
        fits: whether a flag takes a value, which is shown then.
    """

    def answer(ours: str) -> str:
        shown = f" {value}" if value and " " not in ours and fits(ours, value) else ""
        return f"unknown flag {flag}: did you mean {ours}{shown}?"

    name = flag.lstrip("-").replace("-", "_")
    if name in aliases.EXPLANATIONS:
        return f"unknown flag {flag}: {aliases.EXPLANATIONS[name]}."
    ours = aliases.FLAGS.get(name, f"--{name}")
    if ours.partition(" ")[0] in known:
        return answer(ours)
    near = _close_matches(f"--{name}", known)
    if near and name not in aliases.FLAGS and not _owners(name):
        return answer(near[0])
    if name not in aliases.FLAGS and (longer := [one for one in known if one.startswith(f"--{name}")]):
        return answer(min(longer, key=len))
    if owners := _owners(ours[2:]):
        return f"unknown flag {flag}: it is {ours} of {' and '.join(owners)}."
    return f"unknown flag {flag}. See vits-trainer {command} --help."


def _owners(flag: str) -> list[str]:
    """Returns the commands that have a flag, given without dashes and perhaps with its value."""
    return [command for command, config in _COMMANDS.items() if flag.partition(" ")[0] in config.__dataclass_fields__]


def _accept_short_forms(parser: jsonargparse.ArgumentParser, fields: Mapping[str, Any]) -> None:
    """Lets ``--flag`` mean ``--flag true``, and adds names such as ``--from``, which cannot be Python keywords."""
    for action in parser._actions:
        field = fields.get(action.dest)
        if action.dest == "fp16" or (field is not None and field.type is bool):
            action.nargs, action.const = "?", True
        elif action.dest == "push_to_hub":  # without a name, as transformers takes it: the configuration refuses it
            action.nargs, action.const = "?", ""
        if field is not None and "several" in field.metadata:
            action.metavar = "A B ..."
        if field is not None and "short" in field.metadata:
            parser._option_string_actions[f"--{field.metadata['short']}"] = action


def _split_config(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the files of ``--config`` by the names of recipes, and the flags, which override them in any order."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", action="append", default=[])
    try:
        known, flags = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise ConfigError("--config: give the name of a recipe or a YAML file.") from error
    return [str(recipe_path(value)) for value in known.config], flags


def _reject_unknown_flags(command: str, parser: jsonargparse.ArgumentParser, argv: Sequence[str]) -> None:
    known = [f"--{name}" for name in _names(parser)]
    for arg, following in pairwise([*argv, "--"]):
        flag, _, value = arg.partition("=")
        if flag.startswith("--") and flag != "--" and not _is_known(flag[2:], parser):
            value = value or ("" if following.startswith("--") else following)
            message = unknown_flag_message(command, flag, known, value, lambda ours, given: _takes(parser, ours, given))
            raise ConfigError(f"{command}: {message}")


def _takes(parser: jsonargparse.ArgumentParser, flag: str, value: str) -> bool:
    """Returns whether a flag takes a value, by its type."""
    try:
        parser.parse_args([flag, value])
    except _PARSING_ERRORS:
        return False
    return True


def _reject_unknown_keys(
    command: str, parser: jsonargparse.ArgumentParser, file: str, settings: Mapping[str, Any], prefix: str = ""
) -> None:
    known = _names(parser)
    for key, value in settings.items():
        name = prefix + key
        if isinstance(value, Mapping) and any(other.startswith(f"{name}.") for other in known):
            _reject_unknown_keys(command, parser, file, value, f"{name}.")
        elif not _is_known(name, parser):
            otherwise = f"see vits-trainer {command} --help."  # the names fill a page
            raise ConfigError(f"{command}: {file}: {unknown_name_message('key', name, known, otherwise)}")


def _is_known(name: str, parser: jsonargparse.ArgumentParser) -> bool:
    """Whether it is a flag, or a key of one that takes any mapping, such as ``architecture.hidden_size``."""
    known = _names(parser)
    *outer, _ = accumulate(name.split("."), "{}.{}".format)
    is_open = {part: not any(other.startswith(f"{part}.") for other in known) for part in outer}
    return name in known or any(part in known and is_open[part] for part in outer)


def _names(parser: jsonargparse.ArgumentParser) -> list[str]:
    """Returns the flags without dashes, with the fields of optional dataclasses."""
    names = {flag[2:] for flag in parser._option_string_actions if flag.startswith("--")}
    for action in parser._actions:
        for kind in filter(dataclasses.is_dataclass, get_args(getattr(action, "_typehint", None))):
            names |= {f"{action.dest}.{field.name}" for field in dataclasses.fields(kind)}
    return sorted(names)


def _join_several(argv: Sequence[str], fields: Mapping[str, Any]) -> list[str]:
    """Turns ``--flag A B`` into ``--flag ["A", "B"]`` for the fields that take several words."""
    flags = {f"--{name}" for name, field in fields.items() if field.metadata.get("several")}
    joined: list[str] = []
    words: list[str] | None = None
    for arg in argv:
        if words is not None and not arg.startswith("-"):
            words.append(arg)
            joined[-1] = json.dumps(words, ensure_ascii=False)
        elif arg in flags:
            words = []
            joined += [arg, "[]"]
        else:
            words = None
            joined.append(arg)
    return joined


def _expand_positional(argv: list[str], fields: Mapping[str, Any]) -> list[str]:
    """Turns a leading positional argument into the flag of the only field that has an example or no default."""
    leading = [
        name for name, field in fields.items() if "example" in field.metadata or field.default is dataclasses.MISSING
    ]
    if not leading:
        return argv
    name, field = leading[0], fields[leading[0]]
    if argv and not argv[0].startswith("-"):
        return [f"--{name}", *argv]
    is_required = field.default is dataclasses.MISSING
    if is_required and not {f"--{name}", "--help", "-h"} & {arg.partition("=")[0] for arg in argv}:
        raise ConfigError(f"give --{name}, such as {field.metadata.get('example', name.upper())}.")
    return argv


def _readable(message: str, files: Sequence[str]) -> str:
    """Returns jsonargparse's message in one line, with the flag in place of its "Parser key"."""
    text = " ".join(re.sub(r"<class '(\w+)'>", r"\1", message).split())
    for phrase, plain in _PLAIN_WORDS.items():
        text = text.replace(phrase, plain)
    value = re.match(r'Parser key "([\w.]+)": (.*)', text)
    where = f"{', '.join(files)}: " if files else ""
    return f"--{value[1]}: {value[2]}" if value else f"{where}{text}"
