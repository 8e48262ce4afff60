"""Only utils.files deletes files, and only files of this program; temporary files and locks."""

import ast
import json
import multiprocessing
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import vits_trainer
from vits_trainer.feedback.training_process import WORK
from vits_trainer.training.checkpoint_record import CHECKPOINT
from vits_trainer.utils import files
from vits_trainer.utils.errors import ConfigError, DataError
from vits_trainer.utils.files import MARKER, Kind, mark, marked_kind, open_results

PACKAGE = Path(vits_trainer.__file__).parent
WORKING = Kind("work", re.compile(r"own/.*"))

# Destructive functions of os and shutil, and methods of Path.
OS = {"remove", "removedirs", "rename", "renames", "replace", "rmdir", "unlink"}
PATH = {"rename", "rmdir", "unlink"}
SHUTIL = {"move", "rmtree"}


def destructive_calls(source: str) -> list[str]:
    """Returns calls that delete, rename or replace files, as ``name:line``."""
    tree, modules, calls = ast.parse(source), {"os": "os", "shutil": "shutil"}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module in ("os", "shutil"):
            named = OS if node.module == "os" else SHUTIL
            calls += [f"{alias.name}:{node.lineno}" for alias in node.names if alias.name in named | {"*"}]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            module = modules.get(node.value.id) if isinstance(node.value, ast.Name) else None
            named = {"os": OS, "shutil": SHUTIL}.get(module, PATH)
            calls += [f"{node.attr}:{node.lineno}"] if node.attr in named else []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "replace":
            # str.replace has two arguments, os.replace is handled above, dataclasses.replace has keyword arguments.
            owner = node.func.value.id if isinstance(node.func.value, ast.Name) else None
            one = len(node.args) + sum(keyword.arg == "target" for keyword in node.keywords) == 1
            calls += [f"replace:{node.lineno}"] if one and owner not in modules and owner != "dataclasses" else []
    return calls


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_only_one_module_deletes(path: Path) -> None:
    calls = destructive_calls(path.read_text(encoding="utf-8"))
    assert bool(calls) == (path == PACKAGE / "utils/files.py"), calls


@pytest.mark.parametrize(
    "line",
    [
        "import shutil\nshutil.rmtree(folder)",
        "import shutil as s\ns.move(a, b)",
        "from shutil import rmtree",
        "import os\nos.replace(a, b)",
        "import os as o\no.removedirs(a)",
        "from os import remove as gone",
        "path.unlink(missing_ok=True)",
        "callback(path.unlink)",
        "path.with_name('x').rename(other)",
        "part.replace(path)",
        "part.replace(target=path)",
        "Path(a).rmdir()",
    ],
)
def test_every_form_of_deletion_is_detected(line: str) -> None:
    assert destructive_calls(line)


@pytest.mark.parametrize(
    "line",
    ["text.replace('a', 'b')", "replace(config, seed=1)", "dataclasses.replace(config, seed=1)", "names.remove('a')"],
)
def test_other_functions_of_the_same_name_are_not_detected(line: str) -> None:
    assert not destructive_calls(line)


# Removal of directories


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "work/own/deep").mkdir(parents=True)
    (tmp_path / "work/own/deep/a").write_text("ours")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/b").write_text("precious")
    (tmp_path / "work/own/link").symlink_to(tmp_path / "elsewhere")
    return tmp_path / "work"


def test_marked_folder_is_removed(folder: Path) -> None:
    files.mark(folder, WORKING)
    assert files.is_ours(folder, WORKING)
    files.remove(folder, WORKING)
    assert not folder.exists()
    assert (folder.parent / "elsewhere/b").read_text() == "precious"


@pytest.mark.parametrize("marker", [None, "", "{", "[]", '{"kind": "voice"}', '{"kind": ["work"]}', "[" * 5000])
def test_folder_without_our_marker_is_kept(folder: Path, marker: str | None) -> None:
    if marker is not None:
        (folder / MARKER).write_text(marker)
    before = sorted(folder.rglob("*"))
    assert not files.is_ours(folder, WORKING)
    with pytest.raises(DataError, match="was not created by vits-trainer"):
        files.remove(folder, WORKING)
    assert sorted(folder.rglob("*")) == before


def test_files_of_others_in_our_folder_are_kept_and_it_remains_ours(folder: Path) -> None:
    files.mark(folder, WORKING)
    (folder / "notes").write_text("mine")
    files.remove(folder, WORKING)
    assert sorted(path.name for path in folder.iterdir()) == [MARKER, "notes"]
    assert files.is_ours(folder, WORKING)
    (folder / "notes").unlink()
    files.remove(folder, WORKING)
    assert not folder.exists()


def test_folder_of_a_process_killed_before_marking_is_removed(tmp_path: Path) -> None:
    for names in ([], [f".{MARKER}.0badcafe.part"], [MARKER]):
        (tmp_path / "work").mkdir()
        for name in names:
            (tmp_path / "work" / name).touch()
        files.remove(tmp_path / "work", WORKING)
        assert not (tmp_path / "work").exists()


def test_folders_of_earlier_versions_are_recognized(tmp_path: Path) -> None:
    """By file names that only this program uses; a checkpoint-500 of another trainer is not recognized."""
    for name in ("checkpoint-5/voice/config.json", "checkpoint-5/generator.safetensors", "checkpoint-500/optimizer.pt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert files.is_ours(tmp_path / "checkpoint-5", CHECKPOINT)
    assert not files.is_ours(tmp_path / "checkpoint-500", CHECKPOINT)
    (tmp_path / "new_work/corrections_source").mkdir(parents=True)
    assert not files.is_ours(tmp_path / "new_work", WORK)
    (tmp_path / "new_work/corrections").mkdir()
    assert files.is_ours(tmp_path / "new_work", WORK)


def test_move_does_not_overwrite(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/c").write_text("c")
    (tmp_path / "dangling").symlink_to("nowhere")
    for target in ("b", "folder", "dangling"):
        with pytest.raises(FileExistsError):
            files.move(tmp_path / "a", tmp_path / target)
    assert (tmp_path / "b").read_text() == "b"


# Temporary names

HOLDS = """
import sys, time
from pathlib import Path
from vits_trainer.utils import files
with getattr(files, sys.argv[1])(Path(sys.argv[2])) as part:
    (part / "half" if part.is_dir() else part).write_text("half")
    print(part, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("function", ["temporary_sibling_dir", "atomic_writer"])
def test_only_leftovers_of_killed_processes_are_removed(tmp_path: Path, function: str) -> None:
    target = tmp_path / "voice [1]"  # characters that are special in glob patterns
    foreign = tmp_path / f".{target.name}.mine.tmp"
    foreign.mkdir()
    (tmp_path / f".{target.name}.0badcafe.tmp").mkdir()
    (tmp_path / f".{target.name}.0badcafe.tmp/mine").write_text("no marker")

    def start() -> "tuple[subprocess.Popen[str], Path]":
        command = [sys.executable, "-c", HOLDS, function, str(target)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PACKAGE.parent)
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    (running, theirs), (killed, stale) = start(), start()
    assert theirs != stale
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert stale.exists()
    with getattr(files, function)(target) as own:
        assert own not in (theirs, stale)
        assert not stale.exists()
        assert theirs.exists()
        if function == "atomic_writer":
            own.write_text("whole")
    running.kill()
    running.wait()
    with getattr(files, function)(target):
        assert not theirs.exists()
    assert foreign.exists()
    assert (tmp_path / f".{target.name}.0badcafe.tmp/mine").exists()
    remaining = {path.name for path in tmp_path.iterdir()} - {target.name}
    assert remaining == {foreign.name, f".{target.name}.0badcafe.tmp"}


def _write_repeatedly(path: str, word: str) -> None:
    for number in range(150):
        files.atomic_write(Path(path), json.dumps([word, number] * 200))


def test_concurrent_writes_of_one_file_never_mix(tmp_path: Path) -> None:
    target = tmp_path / "metrics.json"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_repeatedly, args=(str(target), word)) for word in ("one", "two")]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        if target.exists():
            values = json.loads(target.read_text())
            assert len(set(map(str, values))) == 2
            seen.add(values[0])
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_failed_write_changes_nothing(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_text("old")

    def write() -> None:
        with files.atomic_writer(target) as part:
            part.write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def test_lock_of_a_deleted_file_does_not_block_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = files.try_lock(path)
    assert first is not None
    assert files.try_lock(path) is None
    files.discard(path)
    second = files.try_lock(path)  # a new file of the same name
    assert second is not None
    first.close()
    assert files.try_lock(path) is None


def test_results_replace_those_of_an_earlier_call_and_no_other_files(tmp_path: Path) -> None:
    kind = Kind("table", re.compile(r"table\.csv"))
    (tmp_path / "notes.txt").write_text("mine")
    open_results(tmp_path, kind)
    (tmp_path / "table.csv").write_text("ours")
    open_results(tmp_path, kind)  # a second call
    other = tmp_path / "other"
    other.mkdir()
    (other / "table.csv").write_text("mine")
    with pytest.raises(ConfigError, match=r"contains table\.csv, which this command did not write"):
        open_results(other, kind)
    assert sorted(path.name for path in other.iterdir()) == ["table.csv"]
    # a folder of another kind keeps its marker
    mark(other, Kind("voice", re.compile(r"config\.json")))
    (other / "table.csv").unlink()
    open_results(other, kind)
    assert marked_kind(other) == "voice"
