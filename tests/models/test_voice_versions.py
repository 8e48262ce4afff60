"""Replacing and rolling back voices: atomic, and without loss if the process is killed at any step."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vits_trainer.models import voice_versions
from vits_trainer.models.voice_versions import VoiceHistory
from vits_trainer.utils import files
from vits_trainer.utils.errors import ConfigError, ModelError


def voice(folder: Path, content: str, version: int | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "vits", "content": content}))
    (folder / "model.safetensors").write_text(content)
    (folder / "discriminator.safetensors").write_text(content)
    if version is not None:
        voice_versions.write_history(folder, VoiceHistory(version, {content: "sha"}, ({"words": content},)))
    return folder


def content(folder: Path) -> str:
    whole = {json.loads((folder / "config.json").read_text())["content"]}
    whole |= {(folder / name).read_text() for name in ("model.safetensors", "discriminator.safetensors")}
    assert len(whole) == 1
    return whole.pop()


def install(root: Path, name: str, keep: int = 0) -> int:
    served = root / "final_model"
    with voice_versions.exclusive(served):
        number = voice_versions.next_version(served)
        new = voice(root / f"new_{name}", name, number)
        with voice_versions.replace_voice(served, keep) as folder:
            shutil.copytree(new, folder, dirs_exist_ok=True)
    return number


def test_first_voice_is_installed_in_an_empty_directory(tmp_path: Path):
    assert install(tmp_path, "first") == 1
    assert content(tmp_path / "final_model") == "first"


def test_versions_are_kept_and_restored_in_order(tmp_path: Path):
    voice(tmp_path / "final_model", "trained")
    assert [install(tmp_path, name) for name in ("one", "two")] == [1, 2]
    protected = tmp_path / "final_model_versions"
    assert (content(protected / "0"), content(protected / "1")) == ("trained", "one")
    with voice_versions.exclusive(tmp_path / "final_model"):
        assert voice_versions.roll_back(tmp_path / "final_model") == (2, 1)
        assert content(tmp_path / "final_model") == "one"
        assert voice_versions.read_history(tmp_path / "final_model").corrections == {"one": "sha"}
        assert voice_versions.roll_back(tmp_path / "final_model") == (1, 0)
        assert content(tmp_path / "final_model") == "trained"
        assert voice_versions.read_history(tmp_path / "final_model") == VoiceHistory()
        with pytest.raises(ConfigError, match="no earlier version"):
            voice_versions.roll_back(tmp_path / "final_model")
    assert (content(protected / "rolled-back-1"), content(protected / "rolled-back-2")) == ("one", "two")
    assert install(tmp_path, "three") == 3  # numbers are never reused


def test_number_of_kept_versions_is_limited(tmp_path: Path):
    for n in range(5):
        install(tmp_path, f"v{n}", keep=2)
    protected = {path.name for path in (tmp_path / "final_model_versions").iterdir() if path.is_dir()}
    assert protected == {"3", "4"}


def test_swap_never_leaves_the_directory_missing(tmp_path: Path):
    served, other = voice(tmp_path / "served", "one"), voice(tmp_path / "other", "two")
    stopped, misses = threading.Event(), []

    def check_presence() -> None:
        while not stopped.is_set():
            try:
                (served / "config.json").read_text()
            except FileNotFoundError:
                misses.append(1)

    thread = threading.Thread(target=check_presence)
    thread.start()
    for _ in range(300):
        voice_versions.atomic_swap(served, other)
    stopped.set()
    thread.join()
    assert not misses
    assert content(served) == "one"


def test_swap_falls_back_to_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(voice_versions.ctypes, "CDLL", lambda _: object())
    voice(tmp_path / "final_model", "trained")
    install(tmp_path, "one")
    assert content(tmp_path / "final_model") == "one"
    assert content(tmp_path / "final_model_versions/0") == "trained"


KILLED = """
import os, signal, sys
from pathlib import Path
from vits_trainer.models import voice_versions; from vits_trainer.utils import files
calls, limit = 0, int(sys.argv[2])
def counted(function):
    def call(*arguments, **named):
        global calls
        calls += 1
        if calls > limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return call
for name in ("rename", "replace", "unlink", "mkdir", "rmdir"):
    setattr(Path, name, counted(getattr(Path, name)))
files.fsync_dir = counted(files.fsync_dir)
voice_versions.atomic_swap = counted(voice_versions.atomic_swap)
root = Path(sys.argv[1])
directory = root / "final_model"
if sys.argv[3] == "renames":
    voice_versions.ctypes.CDLL = lambda _: object()
with voice_versions.exclusive(directory), voice_versions.replace_voice(directory, 1) as folder:
    for path in (root / "new").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
print("installed")
"""


@pytest.mark.parametrize("method", ["swap", "renames"])
def test_kill_at_any_step_loses_nothing(tmp_path: Path, method: str):
    """Sends SIGKILL before each file operation in turn, until one run completes; the old or new voice is complete."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    outcomes = set()
    for limit in range(120):
        root = tmp_path / str(limit)
        voice(root / "final_model", "trained")
        (root / "final_model/MY_NOTES.md").write_text("mine")
        voice(root / "new", "one")
        environment = os.environ | {"PYTHONPATH": str(Path(voice_versions.__file__).parents[2])}
        arguments = [sys.executable, str(script), str(root), str(limit), method]
        result = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)
        at_once = method == "swap" and content(root / "final_model")
        with voice_versions.exclusive(root / "final_model"), files.temporary_sibling_dir(root / "final_model"):
            now = content(root / "final_model")
        assert at_once in (False, now)  # no repair was needed
        outcomes.add(now)
        protected = root / "final_model_versions/0"
        assert now == "trained" or (now == "one" and content(protected) == "trained"), (limit, now)
        assert (root / "final_model/MY_NOTES.md").read_text() == "mine"
        remaining = {path.name for path in root.iterdir()} - {"final_model_versions"}
        assert remaining == {"final_model", "new"}, limit  # no temporary directory and no lock
        assert not protected.exists() or {path.name for path in protected.parent.iterdir()} == {"0"}
        if result.returncode == 0:
            break
        assert result.returncode == -signal.SIGKILL, result.stderr
    assert result.stdout == "installed\n"
    assert limit > 20
    assert outcomes == {"trained", "one"}


CLAIMS = """
import sys
from pathlib import Path
from vits_trainer.models import voice_versions
voice_versions._LOCK_TIMEOUT_S = 0.1
with voice_versions.exclusive(Path(sys.argv[1])):
    print("locked")
"""


def test_lock_excludes_other_processes(tmp_path: Path):
    def other() -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, "-c", CLAIMS, str(tmp_path / "link")]
        return subprocess.run(arguments, capture_output=True, text=True, cwd=Path(voice_versions.__file__).parents[2])

    (tmp_path / "link").symlink_to(tmp_path / "voice")  # alias
    with voice_versions.exclusive(tmp_path / "voice"), voice_versions.exclusive(tmp_path / "nested/../voice/"):
        assert "is in use by another process" in other().stderr
    assert other().stdout == "locked\n"
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_damaged_history_is_reported(tmp_path: Path):
    voice(tmp_path / "final_model", "trained")
    (tmp_path / "final_model/learnt.json").write_text("{")
    with pytest.raises(ModelError, match=r"learnt\.json: cannot be read"):
        voice_versions.read_history(tmp_path / "final_model")


def test_history_round_trip(tmp_path: Path):
    folder = voice(tmp_path / "voice", "x")
    history = VoiceHistory(3, {"ä b": hashlib.sha256(b"").hexdigest()}, ({"version": 3, "words": "accepted"},))
    voice_versions.write_history(folder, history)
    assert voice_versions.read_history(folder) == history


# Checks of the output directory


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """Creates a prepared data set with a checkpoint, a run, feedback and a voice."""
    for name in ("wavs/a.wav", "metadata.csv", "dataset.json", "runs/run/metrics.jsonl", "feedback/a.txt", "thesis"):
        (tmp_path / "training" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "training" / name).write_text("precious")
    checkpoint = tmp_path / "training/checkpoints/checkpoint-5"
    (checkpoint / "voice").mkdir(parents=True)
    for name in ("state.json", "manifest.json", "voice/config.json"):
        (checkpoint / name).write_text("{}")
    voice(tmp_path / "training/final_model", "trained")
    return tmp_path / "training"


def protected(training: Path) -> dict[str, Path]:
    return {"--data_dir": training, "--checkpoint_dir": training / "checkpoints", "--runs_dir": training / "runs"}


@pytest.mark.parametrize(
    ("location", "message"),
    [
        (".", "is or contains --data_dir"),
        ("../training/", "is or contains --data_dir"),
        ("wavs/../runs/..", "is or contains --data_dir"),
        ("..", "is or contains --data_dir"),
        ("/", "is or contains the working directory"),
        ("~", "is or contains your home directory"),
        ("working", "is or contains the working directory"),
        ("wavs", "contains a.wav and is not a voice"),
        ("wavs/final_model", "from which this program deletes files"),
        ("checkpoints", "is or contains --checkpoint_dir"),
        ("checkpoints/checkpoint-5", "contains manifest.json, state.json, voice and is not a voice"),
        ("checkpoints/checkpoint-5/voice", "from which this program deletes files"),
        ("runs", "is or contains --runs_dir"),
        ("runs/run", "contains metrics.jsonl and is not a voice"),
        ("feedback", "contains a.txt and is not a voice"),
        ("thesis", "is a file"),
        ("link", "contains a.wav and is not a voice"),
        ("circle", "is a circular symbolic link"),
        ("other", "contains checkpoint-1"),
        ("x" * 300, "cannot be written (File name too long)"),
    ],
)
def test_directory_of_other_files_is_rejected(
    training: Path, monkeypatch: pytest.MonkeyPatch, location: str, message: str
) -> None:
    (training / "working").mkdir()
    monkeypatch.chdir(training / "working")
    (training / "link").symlink_to("wavs")
    (training / "circle").symlink_to("circle")
    (voice(training / "other", "trained") / "checkpoint-1").mkdir()  # as in other training programs
    before = sorted(training.rglob("*"))
    output = Path(location).expanduser() if location in ("/", "~") else training / location
    paths = {} if location in ("/", "~", "working") else protected(training)
    with pytest.raises(ConfigError, match=re.escape(message)) as raised:
        voice_versions.check_voice_destination(output, "output_dir", paths)
    assert str(raised.value).startswith(f"--output_dir {output} ")
    assert "Pass a directory" in str(raised.value)
    assert sorted(training.rglob("*")) == before


def test_path_below_a_file_cannot_be_locked(training: Path) -> None:
    with pytest.raises(ConfigError, match="thesis/voice: cannot be written"):
        voice_versions.exclusive(training / "thesis/voice").__enter__()


@pytest.mark.parametrize(
    "location", ["final_model", "final_model/", "new", "new/deeper", "checkpoints/voice", "empty", "link"]
)
def test_missing_empty_or_voice_directory_is_accepted(training: Path, location: str) -> None:
    (training / "empty").mkdir()
    (training / "link").symlink_to("final_model")
    voice_versions.check_voice_destination(training / location, "output_dir", protected(training))


@pytest.mark.skipif(not hasattr(os, "setresuid") or os.getuid() != 0, reason="requires root to change the user")
def test_read_only_directory_is_rejected(tmp_path: Path) -> None:
    voice(tmp_path / "voice", "trained").chmod(0o555)
    (tmp_path / "closed").mkdir(mode=0o555)
    tmp_path.chmod(0o755)
    script = (
        "import os, sys; os.chdir('/'); from pathlib import Path; from vits_trainer.models import voice_versions\n"
        "os.setresuid(65534, 65534, 65534); directory = Path(sys.argv[1])\n"
        "voice_versions.check_voice_destination(directory, 'output_dir', {})\n"
        "voice_versions.exclusive(directory).__enter__()"
    )
    for parent in [tmp_path, *tmp_path.parents][:-2]:
        parent.chmod(parent.stat().st_mode | 0o055)
    for name in ("voice", "closed/voice"):
        result = subprocess.run([sys.executable, "-c", script, str(tmp_path / name)], capture_output=True, text=True)
        assert "ConfigError" in result.stderr
        assert "cannot be written (Permission denied)" in result.stderr


@pytest.mark.parametrize("name", [None, "discriminator.safetensors", "learnt.json", "README.md"])
def test_voices_without_marker_are_recognised_by_our_files(tmp_path: Path, name: str | None) -> None:
    location = tmp_path / "voice"
    location.mkdir()
    (location / "config.json").write_text('{"model_type": "vits"}')
    (location / "model.safetensors").write_text("")
    if name is not None:
        (location / name).write_text("Text in, speech out. Made with vits_trainer.\n")
    assert files.is_ours(location, voice_versions.VOICE) == (name is not None)
    voice_versions.check_voice_destination(location, "output_dir", {})  # kept as a version, regardless of its origin


def test_voice_of_another_program_is_never_deleted(tmp_path: Path) -> None:
    served = voice(tmp_path / "final_model", "downloaded")
    (served / "discriminator.safetensors").unlink()
    for n in range(4):
        install(tmp_path, f"v{n}", keep=1)
    protected = {path.name for path in (tmp_path / "final_model_versions").iterdir()}
    assert protected == {"0", "3"}
    assert (tmp_path / "final_model_versions/0/model.safetensors").read_text() == "downloaded"


def test_other_directories_among_the_versions_are_kept(tmp_path: Path) -> None:
    voice(tmp_path / "final_model", "trained")
    for name in ("0", "2024", "rolled-back-1"):
        (tmp_path / "final_model_versions" / name).mkdir(parents=True)
        (tmp_path / "final_model_versions" / name / "mine").write_text("precious")
    for n in range(3):
        install(tmp_path, f"v{n}", keep=1)
    directories = {path.parent.name for path in (tmp_path / "final_model_versions").rglob("mine")}
    assert directories == {"earlier-0", "2024", "rolled-back-1"}


def test_other_files_stay_when_the_voice_is_replaced(tmp_path: Path) -> None:
    served = voice(tmp_path / "final_model", "trained")
    (served / "MY_NOTES.md").write_text("mine")
    (served / "plots").mkdir()
    (served / "plots/a.png").write_text("mine")
    for name in ("one", "two"):
        install(tmp_path, name, keep=1)
        assert content(served) == name
        assert ((served / "MY_NOTES.md").read_text(), (served / "plots/a.png").read_text()) == ("mine", "mine")
    with voice_versions.exclusive(served):
        voice_versions.roll_back(served)
    assert content(served) == "one"
    assert (served / "plots/a.png").read_text() == "mine"
    remaining = [path.name for path in (tmp_path / "final_model_versions").rglob("*")]
    assert not {"MY_NOTES.md", "plots"} & set(remaining)
    voice_versions.move_voice(served, tmp_path / "rejected")
    assert content(tmp_path / "rejected") == "one"
    assert sorted(path.name for path in served.iterdir()) == [files.MARKER, "MY_NOTES.md", "plots"]
    install(tmp_path, "three")
    assert content(served) == "three"
    assert (served / "plots/a.png").read_text() == "mine"


def test_link_is_kept_and_its_target_replaced(tmp_path: Path) -> None:
    voice(tmp_path / "big/disk", "trained")
    (tmp_path / "final_model").symlink_to("big/disk")
    install(tmp_path, "one")
    assert (tmp_path / "final_model").readlink() == Path("big/disk")
    assert content(tmp_path / "big/disk") == "one"
    assert content(tmp_path / "big/disk_versions/0") == "trained"


def test_dangling_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "final_model").symlink_to("big/disk")
    install(tmp_path, "one")
    assert content(tmp_path / "big/disk") == "one"
    assert (tmp_path / "final_model").is_symlink()


def test_voice_is_numbered_only_when_it_replaces_another(tmp_path: Path) -> None:
    location = tmp_path / "final_model"
    for name in ("one", "two", "three"):
        with voice_versions.exclusive(location), voice_versions.replace_voice(location, 0) as folder:
            shutil.copytree(voice(tmp_path / name, name), folder, dirs_exist_ok=True)
    assert voice_versions.read_history(location).version == 2
    assert not (tmp_path / "final_model_versions/0/learnt.json").exists()
    assert content(tmp_path / "final_model_versions/1") == "two"
