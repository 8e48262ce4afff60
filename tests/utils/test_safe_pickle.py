"""Pickled checkpoints: classes that trainers store are loaded, others raise an error that names them."""

import argparse
import os
import pickle
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.limits import limited_memory
from vits_trainer.utils import safe_pickle
from vits_trainer.utils.errors import ModelError


class Program:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_code_in_a_pickle_raises_and_is_not_executed(tmp_path: Path, zipped: bool) -> None:
    trace, checkpoint = tmp_path / "trace", tmp_path / "G_1.pth"
    torch.save(
        {"model": {"a": torch.ones(2)}, "more": Program(f"touch {trace}")},
        checkpoint,
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(ModelError, match=r"G_1\.pth: refers to (posix|nt)\.system.* was not loaded"):
        safe_pickle.load(checkpoint)
    assert not trace.exists()
    torch.load(checkpoint, weights_only=False)  # executes the code
    assert trace.exists()


def test_class_of_another_package_raises_with_its_name(tmp_path: Path) -> None:
    torch.save({"config": Path.cwd().stat()}, tmp_path / "c.pth")
    with pytest.raises(ModelError, match=r"refers to os\.stat_result"):
        safe_pickle.load(tmp_path / "c.pth")


def test_dtype_flags_of_a_pickle_are_ignored(tmp_path: Path) -> None:
    """With flag 4, numpy 2 would read the address of the bytes as the number."""

    class DType:
        def __reduce__(self) -> tuple[object, ...]:
            return np.dtype, ("f8", False, True), (3, "<", None, None, None, -1, -1, 4)

    class Number:
        def __reduce__(self) -> tuple[object, ...]:
            return np.float64(0).__reduce__()[0], (DType(), np.float64(1.5).tobytes())

    torch.save({"loss": Number()}, tmp_path / "c.pth")
    assert safe_pickle.load(tmp_path / "c.pth")["loss"] == 1.5


@pytest.mark.parametrize("name", ["O8", "V8", "S8"])
def test_numpy_dtypes_that_are_not_numbers_raise(tmp_path: Path, name: str) -> None:
    torch.save({"loss": np.dtype(name)}, tmp_path / "c.pth")
    with pytest.raises(ModelError, match=r"c\.pth"):
        safe_pickle.load(tmp_path / "c.pth")


def test_truncated_checkpoint_raises_at_any_length(tmp_path: Path) -> None:
    content = {"model": OrderedDict(a=torch.ones(3)), "loss": np.float64(1.5)}
    torch.save(content, tmp_path / "whole.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "whole.pth").read_bytes()
    for length in range(0, len(whole), 3):
        (tmp_path / "c.pth").write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"c\.pth"):
            safe_pickle.load(tmp_path / "c.pth")


def test_classes_that_trainers_store_are_loaded(tmp_path: Path) -> None:
    content = {
        "model": OrderedDict(a=torch.arange(3.0)),
        "hyper_parameters": argparse.Namespace(rate=22050, dataset=Path("/data/set")),
        "optimizer": {"state": defaultdict(dict, {0: {"step": torch.ones(1)}})},
        "model_loss": np.float64(1.5),
        "step": np.int64(7),
    }
    torch.save(content, tmp_path / "c.pth")
    loaded = safe_pickle.load(tmp_path / "c.pth")
    assert loaded["model"]["a"].tolist() == [0, 1, 2]
    assert (loaded["hyper_parameters"].rate, str(loaded["hyper_parameters"].dataset)) == (22050, "/data/set")
    assert loaded["optimizer"]["state"][0]["step"].tolist() == [1]
    assert (loaded["model_loss"], loaded["step"]) == (1.5, 7)


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"PK\x03\x04" + bytes(40), pickle.dumps({"a": 1}, protocol=2)],
    ids=["empty", "text", "zip", "pickle"],
)
def test_file_that_is_not_a_checkpoint_raises(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.pth").write_bytes(content)
    with pytest.raises(ModelError, match=r"c\.pth"):
        safe_pickle.load(tmp_path / "c.pth")


def test_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        safe_pickle.load(tmp_path / "c.pth")


def write_stride_bomb(path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1, dtype=torch.float16).expand(60_000, 60_000)}}, path)


def write_compressed(path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(2**20)}}, path.with_name("plain.pth"))
    with zipfile.ZipFile(path.with_name("plain.pth")) as plain, zipfile.ZipFile(path, "w") as small:
        for name in plain.namelist():
            small.writestr(name, plain.read(name), zipfile.ZIP_DEFLATED)


def write_compressed_pickle(path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(2)}, "text": "x" * 2**22}, path.with_name("plain.pth"))
    with zipfile.ZipFile(path.with_name("plain.pth")) as plain, zipfile.ZipFile(path, "w") as small:
        for name in plain.namelist():
            kind = zipfile.ZIP_DEFLATED if name.endswith("data.pkl") else zipfile.ZIP_STORED
            small.writestr(name, plain.read(name), kind)


class Bytes:
    """A ``bytearray`` that is a number in the pickle."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return bytearray, (10**10,)


def write_bytearray(path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(2)}, "more": Bytes()}, path)


def write_old_bytearray(path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(2)}, "more": Bytes()}, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    "write", [write_stride_bomb, write_compressed, write_compressed_pickle, write_bytearray, write_old_bytearray]
)
def test_checkpoint_that_expands_is_not_loaded(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "c.pth")
    with limited_memory(2**30), pytest.raises(ModelError, match=r"c\.pth: would expand to more memory than its size"):
        safe_pickle.load(tmp_path / "c.pth")


def test_weights_that_are_stored_once_and_named_twice_are_loaded(tmp_path: Path) -> None:
    shared = torch.ones(1000, 100)
    torch.save({"model": {"a": shared, "b": shared.T, "c": shared[::2]}}, tmp_path / "c.pth")
    assert safe_pickle.load(tmp_path / "c.pth")["model"]["b"].shape == (100, 1000)
