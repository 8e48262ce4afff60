"""The reader of structured files: types, limits and messages; no other module parses them."""

import ast
import os
import time
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

import vits_trainer
from vits_trainer.utils import records
from vits_trainer.utils.errors import CheckpointError, DataError

PARSERS = {
    "json": {"load", "loads", "JSONDecoder"},
    "yaml": {"load", "safe_load", "load_all", "full_load", "unsafe_load", "CSafeLoader", "SafeLoader"},
    "safetensors": {"safe_open"},
    "safetensors.torch": {"load_file", "load"},
    "torch": {"load"},
    "pickle": {"load", "loads", "Unpickler"},
    "msgspec": {"json", "convert", "yaml"},
}
"""Functions that read a file's structure, by module."""
ALLOWED = {"utils/records.py", "utils/safe_pickle.py", "utils/installation.py"}


class Record(TypedDict, total=False):
    count: records.Count
    parts: dict[str, list[int]]
    name: str


def parsed(content: bytes) -> Any:
    return records.parse_json(content, "F", Record, DataError, "Fix it.")


def message_of(content: bytes) -> str:
    with pytest.raises(DataError) as error:
        parsed(content)
    return str(error.value)


def used_parsers(source: str) -> set[str]:
    names: dict[str, str] = {}
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{a.name}" for a in node.names if a.name in PARSERS.get(node.module or "", ())}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = names.get(node.value.id, "")
            found |= {f"{module}.{node.attr}"} if node.attr in PARSERS.get(module, ()) else set()
    return found


def test_no_other_module_parses_structured_files() -> None:
    root = Path(vits_trainer.__file__).parent
    used = {path.relative_to(root).as_posix(): used_parsers(path.read_text("utf-8")) for path in root.rglob("*.py")}
    assert {name: found for name, found in used.items() if found and name not in ALLOWED} == {}
    assert used["utils/records.py"]  # the search finds what there is


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"count": -1}', "F: field count: expected int >= 0, found -1. Fix it."),
        (b'{"count": "1"}', "F: field count: expected int, found str. Fix it."),
        (b'{"count": 1e999}', "F: field count: number out of range. Fix it."),
        (b'{"count": NaN}', "F: field count: expected int, found float. Fix it."),
        (b'{"parts": {"a": [1, null]}}', "F: field parts[...][1]: expected int, found null. Fix it."),
        (b"[]", "F: expected object, found array. Fix it."),
        (b"null", "F: expected object, found null. Fix it."),
        (b'{"other": ' + b"[" * 100_000, "F: is nested too deeply. Fix it."),
        (b'{"name": "\\ud800"}', "F: contains text that is not Unicode (a lone surrogate). Fix it."),
        (b'{"count": 1', "F: cannot be read (Expecting ',' delimiter: line 1 column 12 (char 11)). Fix it."),
    ],
)  # fmt: skip
def test_message_names_file_field_expected_and_found(content: bytes, message: str) -> None:
    assert message_of(content) == message


@pytest.mark.parametrize("content", [b"%d" % 10**30, b'{"count": ' + b"9" * 5000 + b"}", b"", b"\xff"])
def test_absurd_content_is_one_short_line(content: bytes) -> None:
    message = message_of(content)
    assert message.startswith("F: ")
    assert len(message) < 200
    assert "\n" not in message


def test_valid_content_is_returned_without_undeclared_fields() -> None:
    assert parsed(b'\xef\xbb\xbf{"count": 3, "more": [1], "name": "\xc5\x9f"}') == {"count": 3, "name": "ş"}


def test_nan_that_python_writes_is_read_as_a_number() -> None:
    value = records.parse_json(b'{"a": NaN, "b": -Infinity}', "F", dict[str, float], DataError, "")
    assert value["a"] != value["a"]
    assert value["b"] == -float("inf")


@pytest.mark.parametrize("raw", [b"[" * 33 + b"]" * 33, b'{"a": 9223372036854775808}', b'{"a": 1e999}'])
def test_untyped_content_is_limited_too(raw: bytes) -> None:
    with pytest.raises(DataError, match="F: "):
        records.parse_json(raw, "F", Any, DataError, "")
    assert records.parse_json(b"[" * 32 + b"]" * 32, "F", Any, DataError, "")  # the limit itself


def test_damaged_line_is_none() -> None:
    assert records.parse_json_line(b'{"count": 1}\n', Record) == {"count": 1}
    assert records.parse_json_line(b'{"count": ', Record) is None
    assert records.parse_json_line(b'{"count": "x"}\n', Record) is None


def test_large_file_pipe_and_missing_file_are_errors(tmp_path: Path) -> None:
    large, pipe = tmp_path / "large.json", tmp_path / "pipe"
    large.write_bytes(b" " * 101)
    os.mkfifo(pipe)
    for path, message in (
        (large, "has more than 100 bytes"), (pipe, "not a regular file"), (tmp_path, "not a regular file"),
        (tmp_path / "absent", "No such file"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=message):
            records.read_json(path, Record, CheckpointError, "", max_bytes=100)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "line 2: aliases"),
        ("a: &a [*a]", "aliases"),
        ("a: !!python/object/apply:os.system [ls]", "tags"),
        ("a: !!timestamp x", "tags"),
        ("a: " + "[" * 40 + "]" * 40, "nested more than 32"),
        ("[" * 100_000, "cannot be read"),
        ("- a", "expected object, found array"),
        ("1: 2", "the key 1 is not text"),
        ("a: " + "9" * 5000, "cannot be read"),
        ("a: 1:59" + ":59" * 500, "out of range"),
        ("a: {", "cannot be read"),
        ("a: \x00", "cannot be read"),
    ],
)
def test_yaml_that_expands_or_constructs_objects_is_an_error(text: str, message: str) -> None:
    start_s = time.monotonic()
    with pytest.raises(DataError, match=message) as error:
        records.parse_yaml(text, "F", DataError, "Fix it.")
    assert time.monotonic() - start_s < 2
    assert "\n" not in str(error.value)


def test_yaml_settings_are_plain_values() -> None:
    text = "rate: 1.5\nname: 2001-99-99\nflag: true\nlist: [1, null]\n"
    expected = {"rate": 1.5, "name": "2001-99-99", "flag": True, "list": [1, None]}
    assert records.parse_yaml(text, "F", DataError, "") == expected
    assert records.parse_yaml("", "F", DataError, "") == {}


def test_tensor_header_has_shapes_and_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(())}, path, metadata={"k": "v"})
    header = records.read_tensor_header(path, DataError, "")
    assert (dict(header.shapes), dict(header.metadata), header.values) == ({"a": (2, 3), "b": ()}, {"k": "v"}, 7)
    path.write_bytes(path.read_bytes()[:-1])
    for read in (records.read_tensor_header, records.read_tensors):
        with pytest.raises(DataError, match=r"a\.safetensors: cannot be read"):
            read(path, DataError, "")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([("a", pa.string())], "column b: expected int32, found missing"),
        ([("a", pa.int64()), ("b", pa.int32())], "column a: expected string, found int64"),
        ([("a", pa.string()), ("b", pa.int32()), ("b", pa.int32())], "column b: expected int32, found twice"),
    ],
)
def test_columns_are_compared(fields: list[tuple[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=f"F: {message}"):
        records.check_columns(pa.schema(fields), {"a": pa.string(), "b": pa.int32()}, "F", DataError, "")
