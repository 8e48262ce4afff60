"""Reads every structured file: JSON, JSON Lines, YAML, and the headers of safetensors and Parquet.

Files may come from anybody. Each reader states the type that it expects, and any other content raises one error of one
line: file, field, expected, found, remedy. Sizes and nesting are limited before anything is built from them.
Imports neither torch nor pyarrow.
"""

import codecs
import json
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, TypeVar, cast

import msgspec
import yaml

from vits_trainer.utils.errors import VitsTrainerError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""At most the largest integer that every JSON library represents exactly."""
PositiveInt = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Seed = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Amount = Annotated[float, msgspec.Meta(ge=0)]
FileName = Annotated[str, msgspec.Meta(pattern=r"^(?!\.{1,2}$)[^/\\\x00]+$", max_length=255)]
"""One component of a path."""
RelativePath = Annotated[str, msgspec.Meta(pattern=r"^(?!/)(?!.*(^|/)\.{1,2}(/|$))[^\\\x00]+$", max_length=4096)]
"""Path below a folder."""
HexDigits = Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{2})*$")]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]

MAX_BYTES: Final = 64 * 2**20
"""Maximum size of a JSON file. The largest real ones are manifests of shards."""
MAX_UNTYPED_BYTES: Final = 8 * 2**20
"""Maximum size of a file from which Python objects of any shape are built: 30 times its size in memory at worst."""
_MAX_YAML_BYTES: Final = 2**20
_MAX_DEPTH: Final = 32
_MAX_SHOWN: Final = 80
"""Maximum characters of a value in a message."""
_UNREADABLE = (OSError, UnicodeError)
_INVALID_YAML = (yaml.YAMLError, ValueError, ArithmeticError, LookupError, RecursionError)
"""ValueError and ArithmeticError: PyYAML's conversion of numbers and dates."""


class _InvalidError(yaml.YAMLError):
    """What is wrong with a content, without its source and the remedy."""


# JSON


def read_json(
    path: Path, kind: type[T], error: type[VitsTrainerError], remedy: str, *, max_bytes: int = MAX_BYTES
) -> T:
    """Reads a JSON file.

    Args:
        path: of the file.
        kind: type of the content. Fields that it does not declare are ignored.
        error: class of the exception.
        remedy: what the user can do, as a sentence.
        max_bytes: larger files are rejected.

    Raises:
        VitsTrainerError: an ``error``: the file cannot be read, or its content is not of this type.
    """
    return parse_json(read_bytes(path, error, remedy, max_bytes), path, kind, error, remedy)


def parse_json(
    content: str | bytes | None, source: object, kind: type[T], error: type[VitsTrainerError], remedy: str
) -> T:
    """Parses JSON; ``source`` is its path or address, for the message. Otherwise as :func:`read_json`.

    A ``content`` of None, as of metadata that a file lacks, is an error, too.
    """
    try:
        return cast("T", _decode(content, kind))
    except _InvalidError as invalid:
        raise error(f"{source}: {invalid}. {remedy}") from invalid


def parse_json_line(line: bytes, kind: type[T]) -> T | None:
    """Parses a line of a JSON Lines file; returns None if it is incomplete or of another type."""
    try:
        return cast("T", _decode(line, kind))
    except _InvalidError:
        return None


def check(value: object, source: object, kind: type[T], error: type[VitsTrainerError], remedy: str) -> T:
    """Checks the type of a value that was read in another way. Otherwise as :func:`read_json`."""
    try:
        return _convert(value, kind)
    except _InvalidError as invalid:
        raise error(f"{source}: {invalid}. {remedy}") from invalid


def _decode(content: str | bytes | None, kind: Any) -> Any:
    if content is None:
        raise _InvalidError("is missing")
    raw = content.encode(errors="surrogatepass") if isinstance(content, str) else content
    raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        value = _decoder(kind).decode(raw)
    except msgspec.ValidationError as invalid:
        raise _InvalidError(_describe(str(invalid), lambda: _loads(raw))) from invalid
    except RecursionError as invalid:
        raise _InvalidError("is nested too deeply") from invalid
    except (msgspec.DecodeError, UnicodeError):
        # Python's own json also writes NaN and Infinity, and its errors name line and column.
        value = _convert(_loads(raw), kind)
    return _limited(value)


@lru_cache(maxsize=64)
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def _loads(raw: bytes) -> Any:
    if len(raw) > MAX_UNTYPED_BYTES:
        raise _InvalidError(f"cannot be read (not JSON of at most {MAX_UNTYPED_BYTES >> 20} MiB)")
    try:
        value = _limited(json.loads(raw, parse_float=_float))
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as invalid:
        raise _InvalidError("is nested too deeply") from invalid
    except UnicodeEncodeError as invalid:
        raise _InvalidError("contains text that is not Unicode (a lone surrogate)") from invalid
    except ValueError as invalid:
        raise _InvalidError(f"cannot be read ({_shortened(str(invalid))})") from invalid
    return value


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise _InvalidError(f"the number {_shortened(text)} is out of range")
    return value


def _convert(value: object, kind: type[T]) -> T:
    try:
        return msgspec.convert(_limited(value), kind)
    except msgspec.ValidationError as invalid:
        raise _InvalidError(_describe(str(invalid), lambda: value)) from invalid
    except UnicodeError as invalid:
        raise _InvalidError("contains text that is not valid Unicode") from invalid


def _limited(value: object) -> object:
    """Returns ``value``; raises for nesting, integers and keys that no file of this program has."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > _MAX_DEPTH:
            raise _InvalidError(f"is nested more than {_MAX_DEPTH} levels deep")
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                invalid = next((key for key in item if not isinstance(key, str)), None)
                if invalid is not None or None in item:
                    raise _InvalidError(f"the key {invalid!r} is not text")
                below += item.values()
            elif isinstance(item, (list, tuple)):
                below += item
            elif type(item) is int and not -(2**63) <= item < 2**63:
                raise _InvalidError(f"the number {_shown(item)} is out of range")
        level = below
    return value


_AT = re.compile(r"(?P<what>.*?)(?: - at `\$?(?P<path>.*)`)?", re.DOTALL)
_EXPECTED = re.compile(r"Expected (?P<expected>.*?)(?:, got (?P<found>.*))?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>.*)`")


def _describe(message: str, load: Callable[[], Any]) -> str:
    """Returns ``field a.b[0]: expected int, found str`` for a message of msgspec."""
    match = _AT.fullmatch(message)
    what, path = (match["what"], match["path"] or "") if match else (message, "")
    missing = _MISSING.fullmatch(what)
    if missing:
        return f"field {(path + '.' + missing['name']).lstrip('.')}: missing"
    where = f"field {path.lstrip('.')}: " if path else ""
    expected = _EXPECTED.fullmatch(what)
    if expected is None:
        return f"{where}{_shortened(what[:1].lower() + what[1:])}"
    found = expected["found"] or _found(load, path)
    return f"{where}expected {expected['expected']}{f', found {found}' if found else ''}".replace("`", "")


def _found(load: Callable[[], Any], path: str) -> str:
    try:
        value = load()
        for name, index in re.findall(r"\.([^.\[]+)|\[(\d+)\]", path):
            value = value[name] if name else value[int(index)]
    except (_InvalidError, LookupError, TypeError):
        return ""
    return "" if "[...]" in path else _shown(value)


def _shown(value: object) -> str:
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return f"an integer of {value.bit_length()} bits"  # longer ones than 4300 digits cannot be printed
    return _shortened(repr(value))


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_SHOWN else f"{line[:_MAX_SHOWN]} ..."


# YAML


class _YamlLoader(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):  # type: ignore[misc]
    """Loads plain values only: dates stay text. The C loader is 20 times as fast."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read_yaml(path: Path, error: type[VitsTrainerError], remedy: str) -> dict[str, Any]:
    """Reads a YAML file that contains settings: text keys with plain values. An empty file has none.

    Raises:
        VitsTrainerError: an ``error``: the file cannot be read, is not YAML, or has aliases, tags or other content.
    """
    content = read_bytes(path, error, remedy, _MAX_YAML_BYTES)
    return parse_yaml(content, path, error, remedy)


def parse_yaml(content: bytes | str, source: object, error: type[VitsTrainerError], remedy: str) -> dict[str, Any]:
    """Parses YAML; ``source`` is its path, for the message. Otherwise as :func:`read_yaml`."""
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        check_yaml_events(text)
        value = yaml.load(text, Loader=_YamlLoader)  # noqa: S506 - a safe loader  # nosec B506
        return _convert({} if value is None else value, dict[str, Any])
    except _InvalidError as invalid:
        raise error(f"{source}: {invalid}. {remedy}") from invalid
    except (*_INVALID_YAML, UnicodeError) as invalid:
        raise error(f"{source}: cannot be read ({_shortened(str(invalid))}). {remedy}") from invalid


def check_yaml_events(text: str) -> None:
    """Raises ``yaml.YAMLError`` for aliases, which expand a few bytes to gigabytes, for tags and for deep nesting."""
    depth = 0
    for event in yaml.parse(text, Loader=_YamlLoader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent):
            raise _InvalidError(f"line {line}: aliases (*{event.anchor}) are not supported")
        if isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)) and event.tag not in (None, "!"):
            raise _InvalidError(f"line {line}: tags ({event.tag}) are not supported")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise _InvalidError(f"is nested more than {_MAX_DEPTH} levels deep")


# Files of any format


def read_bytes(path: Path, error: type[VitsTrainerError], remedy: str, max_bytes: int = MAX_BYTES) -> bytes:
    """Returns the content of a regular file.

    Raises:
        VitsTrainerError: an ``error``: the file cannot be read, is not a regular file, or is larger.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would block, a device has no end
            raise error(f"{path}: cannot be read (not a regular file). {remedy}")
        with path.open("rb") as file:
            content = file.read(min(max_bytes, status.st_size) + 1)  # a larger number would be allocated first
    except (OSError, ValueError) as reason:  # ValueError: NUL in the path
        raise error(f"{path}: cannot be read ({getattr(reason, 'strerror', None) or reason}). {remedy}") from reason
    if len(content) > max_bytes:
        raise error(f"{path}: has more than {max_bytes:,} bytes, too many for such a file. {remedy}")
    return content


def read_text(path: Path, error: type[VitsTrainerError], remedy: str, max_bytes: int = MAX_BYTES) -> str:
    """Returns the content of a UTF-8 file, without a byte order mark. Otherwise as :func:`read_bytes`."""
    try:
        return read_bytes(path, error, remedy, max_bytes).decode("utf-8-sig")
    except UnicodeError as invalid:
        raise error(f"{path}: is not UTF-8 text (byte {getattr(invalid, 'start', 0)}). {remedy}") from invalid


def read_lines(path: Path) -> Iterator[bytes]:
    """Yields the lines of a file that is being written, with their newlines; lines above 1 MiB come in parts."""
    with path.open("rb") as file:
        while line := file.readline(2**20):
            yield line


# Headers


@dataclass(frozen=True)
class TensorFile:
    """Header of a safetensors file."""

    shapes: Mapping[str, tuple[int, ...]]
    """By name."""
    metadata: Mapping[str, str]

    @property
    def values(self) -> int:
        """Number of values of all tensors."""
        total = 0
        for shape in self.shapes.values():
            size = 1
            for length in shape:
                size *= length
            total += size
        return total


def read_tensor_header(path: Path, error: type[VitsTrainerError], remedy: str) -> TensorFile:
    """Reads the header of a safetensors file; safetensors compares it with the file's size.

    Raises:
        VitsTrainerError: an ``error``: the file cannot be read, or is damaged.
    """
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - start-up

    try:
        with safe_open(path, "np") as file:
            names = list(file.keys())
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            return TensorFile(shapes, file.metadata() or {})
    except (OSError, SafetensorError, ValueError, MemoryError) as invalid:
        raise error(f"{path}: cannot be read ({_shortened(str(invalid))}). {remedy}") from invalid


def read_tensors(path: Path, error: type[VitsTrainerError], remedy: str) -> dict[str, "Tensor"]:
    """Returns the tensors of a safetensors file, on the CPU. Otherwise as :func:`read_tensor_header`."""
    from safetensors import SafetensorError  # noqa: PLC0415 - start-up
    from safetensors.torch import load_file  # noqa: PLC0415 - start-up

    try:
        return cast("dict[str, Tensor]", load_file(path))
    except (OSError, SafetensorError, ValueError, KeyError) as invalid:  # KeyError: dtypes unknown to torch
        raise error(f"{path}: cannot be read ({_shortened(str(invalid))}). {remedy}") from invalid


def check_columns(
    schema: Any, expected: Mapping[str, Any], source: object, error: type[VitsTrainerError], remedy: str
) -> None:
    """Checks the columns of a Parquet file.

    Args:
        schema: Arrow schema of the file.
        expected: Arrow type by column name. Other columns are ignored.
        source: path or address of the file, for the message.
        error: class of the exception.
        remedy: what the user can do, as a sentence.

    Raises:
        VitsTrainerError: an ``error``: a column is missing, occurs twice, or has another type.
    """
    for name, kind in expected.items():
        indices = schema.get_all_field_indices(name)
        found = "missing" if not indices else "twice" if len(indices) > 1 else schema.field(indices[0]).type
        if found != kind:
            raise error(f"{source}: column {name}: expected {kind}, found {_shortened(str(found))}. {remedy}")
