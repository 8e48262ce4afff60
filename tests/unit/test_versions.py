"""A voice takes another's place: whole at every moment, and back again; killed at any moment, nothing is lost."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vits_trainer import versions
from vits_trainer.errors import ConfigError, DataError, ModelError
from vits_trainer.versions import Learnt


def voice(folder: Path, content: str, version: int | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(content)
    (folder / "model.safetensors").write_text(content)
    if version is not None:
        versions.write_learnt(folder, Learnt(version, {content: "sha"}, ({"words": content},)))
    return folder


def content(folder: Path) -> str:
    whole = {(folder / name).read_text() for name in ("config.json", "model.safetensors")}
    assert len(whole) == 1
    return whole.pop()


def install(root: Path, words: str, keep: int = 0) -> int:
    served = root / "final_model"
    with versions.claimed(served):
        number = versions.next_version(served)
        new = voice(root / f"new_{words}", words, number)
        versions.install(new, served, keep)
    return number


def test_first_voice_takes_an_empty_place(tmp_path: Path):
    assert install(tmp_path, "first") == 1
    assert content(tmp_path / "final_model") == "first"
    assert content(tmp_path / "new_first") == "first"  # a copy was put into place


def test_each_version_before_is_kept_and_comes_back_in_turn(tmp_path: Path):
    voice(tmp_path / "final_model", "trained")
    assert [install(tmp_path, words) for words in ("one", "two")] == [1, 2]
    kept = tmp_path / "final_model_versions"
    assert (content(kept / "0"), content(kept / "1")) == ("trained", "one")
    with versions.claimed(tmp_path / "final_model"):
        assert versions.roll_back(tmp_path / "final_model") == (2, 1)
        assert content(tmp_path / "final_model") == "one"
        assert versions.read_learnt(tmp_path / "final_model").corrections == {"one": "sha"}
        assert versions.roll_back(tmp_path / "final_model") == (1, 0)
        assert content(tmp_path / "final_model") == "trained"
        assert versions.read_learnt(tmp_path / "final_model") == Learnt()
        with pytest.raises(ConfigError, match="no earlier voice"):
            versions.roll_back(tmp_path / "final_model")
    assert (content(kept / "rolled-back-1"), content(kept / "rolled-back-2")) == ("one", "two")
    assert install(tmp_path, "three") == 3  # no number comes twice


def test_only_so_many_are_kept(tmp_path: Path):
    for n in range(5):
        install(tmp_path, f"v{n}", keep=2)
    kept = {path.name for path in (tmp_path / "final_model_versions").iterdir() if path.is_dir()}
    assert kept == {"3", "4"}


def test_the_place_is_never_empty_or_half(tmp_path: Path):
    place, other = voice(tmp_path / "place", "one"), voice(tmp_path / "other", "two")
    ended, misses = threading.Event(), []

    def look() -> None:
        while not ended.is_set():
            try:
                (place / "config.json").read_text()
            except FileNotFoundError:
                misses.append(1)

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(300):
        versions.exchange(place, other)
    ended.set()
    thread.join()
    assert not misses
    assert content(place) == "one"


def test_without_an_exchange_of_the_file_system_it_is_two_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(versions.ctypes, "CDLL", lambda _: object())
    voice(tmp_path / "final_model", "trained")
    install(tmp_path, "one")
    assert content(tmp_path / "final_model") == "one"
    assert content(tmp_path / "final_model_versions/0") == "trained"


KILLED = """
import os, signal, sys
from pathlib import Path
from vits_trainer import versions
calls, limit = 0, int(sys.argv[2])
def counted(function):
    def call(*arguments, **named):
        global calls
        calls += 1
        if calls > limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return call
for name in ("exchange", "sync", "sync_tree", "_put_in_order"):
    setattr(versions, name, counted(getattr(versions, name)))
Path.rename = counted(Path.rename)
versions.shutil.copytree = counted(versions.shutil.copytree)
root = Path(sys.argv[1])
served = root / "final_model"
if sys.argv[3] == "renames":
    versions.ctypes.CDLL = lambda _: object()
with versions.claimed(served):
    versions.install(root / "new", served, 0)
print("installed")
"""


@pytest.mark.parametrize("way", ["exchange", "renames"])
def test_killed_at_any_step_both_voices_are_there(tmp_path: Path, way: str):
    """Killed (SIGKILL) before each file operation in turn, until one gets through."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    for limit in range(40):
        root = tmp_path / str(limit)
        voice(root / "final_model", "trained")
        voice(root / "new", "one", 1)
        environment = os.environ | {"PYTHONPATH": str(Path(versions.__file__).parents[1])}
        arguments = [sys.executable, str(script), str(root), str(limit), way]
        ended = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)
        with versions.claimed(root / "final_model"):
            now = content(root / "final_model")
        kept = root / "final_model_versions/0"
        assert now == "trained" or (now == "one" and content(kept) == "trained"), (limit, now)
        assert not [path for path in (root / "final_model_versions").iterdir() if path.name in (".new", ".part")]
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert ended.stdout == "installed\n"
    assert limit > 4
    assert now == "one"


def test_one_at_a_time(tmp_path: Path):
    with versions.claimed(tmp_path / "voice"), pytest.raises(DataError, match="Another train_feedback"):
        versions.claimed(tmp_path / "voice").__enter__()


def test_damaged_record_is_said(tmp_path: Path):
    voice(tmp_path / "final_model", "trained")
    (tmp_path / "final_model/learnt.json").write_text("{")
    with pytest.raises(ModelError, match=r"learnt\.json cannot be read"):
        versions.read_learnt(tmp_path / "final_model")


def test_record_is_read_back_as_written(tmp_path: Path):
    folder = voice(tmp_path / "voice", "x")
    learnt = Learnt(3, {"ä b": hashlib.sha256(b"").hexdigest()}, ({"version": 3, "words": "accepted"},))
    versions.write_learnt(folder, learnt)
    assert versions.read_learnt(folder) == learnt
