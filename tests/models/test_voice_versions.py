"""A voice takes another's place: whole at every moment, and back again; killed at any moment, nothing is lost."""

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
        voice_versions.write_learnt(folder, VoiceHistory(version, {content: "sha"}, ({"words": content},)))
    return folder


def content(folder: Path) -> str:
    whole = {json.loads((folder / "config.json").read_text())["content"]}
    whole |= {(folder / name).read_text() for name in ("model.safetensors", "discriminator.safetensors")}
    assert len(whole) == 1
    return whole.pop()


def install(root: Path, words: str, keep: int = 0) -> int:
    served = root / "final_model"
    with voice_versions.exclusive(served):
        number = voice_versions.next_version(served)
        new = voice(root / f"new_{words}", words, number)
        with voice_versions.replacing(served, keep) as folder:
            shutil.copytree(new, folder, dirs_exist_ok=True)
    return number


def test_first_voice_takes_an_empty_place(tmp_path: Path):
    assert install(tmp_path, "first") == 1
    assert content(tmp_path / "final_model") == "first"


def test_each_version_before_is_kept_and_comes_back_in_turn(tmp_path: Path):
    voice(tmp_path / "final_model", "trained")
    assert [install(tmp_path, words) for words in ("one", "two")] == [1, 2]
    kept = tmp_path / "final_model_versions"
    assert (content(kept / "0"), content(kept / "1")) == ("trained", "one")
    with voice_versions.exclusive(tmp_path / "final_model"):
        assert voice_versions.roll_back(tmp_path / "final_model") == (2, 1)
        assert content(tmp_path / "final_model") == "one"
        assert voice_versions.read_learnt(tmp_path / "final_model").corrections == {"one": "sha"}
        assert voice_versions.roll_back(tmp_path / "final_model") == (1, 0)
        assert content(tmp_path / "final_model") == "trained"
        assert voice_versions.read_learnt(tmp_path / "final_model") == VoiceHistory()
        with pytest.raises(ConfigError, match="no earlier voice"):
            voice_versions.roll_back(tmp_path / "final_model")
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
        voice_versions.atomic_swap(place, other)
    ended.set()
    thread.join()
    assert not misses
    assert content(place) == "one"


def test_without_an_exchange_of_the_file_system_it_is_two_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
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
place = root / "final_model"
if sys.argv[3] == "renames":
    voice_versions.ctypes.CDLL = lambda _: object()
with voice_versions.exclusive(place), voice_versions.replacing(place, 1) as folder:
    for path in (root / "new").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
print("installed")
"""


@pytest.mark.parametrize("way", ["exchange", "renames"])
def test_killed_at_any_step_nothing_is_lost(tmp_path: Path, way: str):
    """Killed (SIGKILL) before each file operation in turn, until one gets through: old or new is whole."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    outcomes = set()
    for limit in range(120):
        root = tmp_path / str(limit)
        voice(root / "final_model", "trained")
        (root / "final_model/MY_NOTES.md").write_text("mine")
        voice(root / "new", "one")
        environment = os.environ | {"PYTHONPATH": str(Path(voice_versions.__file__).parents[2])}
        arguments = [sys.executable, str(script), str(root), str(limit), way]
        ended = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)
        at_once = way == "exchange" and content(root / "final_model")
        with voice_versions.exclusive(root / "final_model"), files.temporary_sibling_dir(root / "final_model"):
            now = content(root / "final_model")
        assert at_once in (False, now)  # nothing had to be put in order
        outcomes.add(now)
        kept = root / "final_model_versions/0"
        assert now == "trained" or (now == "one" and content(kept) == "trained"), (limit, now)
        assert (root / "final_model/MY_NOTES.md").read_text() == "mine"
        left = {path.name for path in root.iterdir()} - {"final_model_versions"}
        assert left == {"final_model", "new"}, limit  # no temporary folder, no lock
        assert not kept.exists() or {path.name for path in kept.parent.iterdir()} == {"0"}
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert ended.stdout == "installed\n"
    assert limit > 20
    assert outcomes == {"trained", "one"}


CLAIMS = """
import sys
from pathlib import Path
from vits_trainer.models import voice_versions
voice_versions._PATIENCE_S = 0.1
with voice_versions.exclusive(Path(sys.argv[1])):
    print("claimed")
"""


def test_one_process_at_a_time(tmp_path: Path):
    def other() -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, "-c", CLAIMS, str(tmp_path / "link")]
        return subprocess.run(arguments, capture_output=True, text=True, cwd=Path(voice_versions.__file__).parents[2])

    (tmp_path / "link").symlink_to(tmp_path / "voice")  # another name for it
    with voice_versions.exclusive(tmp_path / "voice"), voice_versions.exclusive(tmp_path / "nested/../voice/"):
        assert "Another process is at work on" in other().stderr
    assert other().stdout == "claimed\n"
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_damaged_record_is_said(tmp_path: Path):
    voice(tmp_path / "final_model", "trained")
    (tmp_path / "final_model/learnt.json").write_text("{")
    with pytest.raises(ModelError, match=r"learnt\.json cannot be read"):
        voice_versions.read_learnt(tmp_path / "final_model")


def test_record_is_read_back_as_written(tmp_path: Path):
    folder = voice(tmp_path / "voice", "x")
    learnt = VoiceHistory(3, {"ä b": hashlib.sha256(b"").hexdigest()}, ({"version": 3, "words": "accepted"},))
    voice_versions.write_learnt(folder, learnt)
    assert voice_versions.read_learnt(folder) == learnt


# Where a voice may go


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """A prepared set with a checkpoint, a run and feedback in it, a voice beside these."""
    for name in ("wavs/a.wav", "metadata.csv", "dataset.json", "runs/run/metrics.jsonl", "feedback/a.txt", "thesis"):
        (tmp_path / "training" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "training" / name).write_text("precious")
    checkpoint = tmp_path / "training/checkpoints/checkpoint-5"
    (checkpoint / "voice").mkdir(parents=True)
    for name in ("state.json", "manifest.json", "voice/config.json"):
        (checkpoint / name).write_text("{}")
    voice(tmp_path / "training/final_model", "trained")
    return tmp_path / "training"


def kept(training: Path) -> dict[str, Path]:
    return {"--data_dir": training, "--checkpoint_dir": training / "checkpoints", "--runs_dir": training / "runs"}


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (".", "is or holds --data_dir"),
        ("../training/", "is or holds --data_dir"),
        ("wavs/../runs/..", "is or holds --data_dir"),
        ("..", "is or holds --data_dir"),
        ("/", "is or holds the working folder"),
        ("~", "is or holds your home folder"),
        ("working", "is or holds the working folder"),
        ("wavs", "holds a.wav, and is no voice"),
        ("wavs/final_model", "from which this program deletes files"),
        ("checkpoints", "is or holds --checkpoint_dir"),
        ("checkpoints/checkpoint-5", "holds manifest.json, state.json, voice, and is no voice"),
        ("checkpoints/checkpoint-5/voice", "from which this program deletes files"),
        ("runs", "is or holds --runs_dir"),
        ("runs/run", "holds metrics.jsonl, and is no voice"),
        ("feedback", "holds a.txt, and is no voice"),
        ("thesis", "is a file"),
        ("link", "holds a.wav, and is no voice"),
        ("circle", "is a link that leads in a circle"),
        ("other", "holds checkpoint-1"),
        ("x" * 300, "cannot be written (File name too long)"),
    ],
)
def test_place_of_something_else_is_refused(
    training: Path, monkeypatch: pytest.MonkeyPatch, place: str, said: str
) -> None:
    (training / "working").mkdir()
    monkeypatch.chdir(training / "working")
    (training / "link").symlink_to("wavs")
    (training / "circle").symlink_to("circle")
    (voice(training / "other", "trained") / "checkpoint-1").mkdir()  # as other trainers have it
    before = sorted(training.rglob("*"))
    output = Path(place).expanduser() if place in ("/", "~") else training / place
    with pytest.raises(ConfigError, match=re.escape(said)) as refusal:
        voice_versions.require_place(output, "output_dir", {} if place in ("/", "~", "working") else kept(training))
    assert str(refusal.value).startswith(f"--output_dir {output} ")
    assert "name a folder" in str(refusal.value)
    assert sorted(training.rglob("*")) == before


def test_place_below_a_file_cannot_be_claimed(training: Path) -> None:
    with pytest.raises(ConfigError, match="thesis/voice cannot be written"):
        voice_versions.exclusive(training / "thesis/voice").__enter__()


@pytest.mark.parametrize(
    "place", ["final_model", "final_model/", "new", "new/deeper", "checkpoints/voice", "empty", "link"]
)
def test_place_of_a_voice_or_of_nothing_is_taken(training: Path, place: str) -> None:
    (training / "empty").mkdir()
    (training / "link").symlink_to("final_model")
    voice_versions.require_place(training / place, "output_dir", kept(training))


@pytest.mark.skipif(not hasattr(os, "setresuid") or os.getuid() != 0, reason="only root can become somebody else")
def test_read_only_place_is_refused(tmp_path: Path) -> None:
    voice(tmp_path / "voice", "trained").chmod(0o555)
    (tmp_path / "closed").mkdir(mode=0o555)
    tmp_path.chmod(0o755)
    script = (
        "import os, sys; os.chdir('/'); from pathlib import Path; from vits_trainer.models import voice_versions\n"
        "os.setresuid(65534, 65534, 65534); place = Path(sys.argv[1])\n"
        "voice_versions.require_place(place, 'output_dir', {})\nvoice_versions.exclusive(place).__enter__()"
    )
    for parent in [tmp_path, *tmp_path.parents][:-2]:
        parent.chmod(parent.stat().st_mode | 0o055)
    for name in ("voice", "closed/voice"):
        ended = subprocess.run([sys.executable, "-c", script, str(tmp_path / name)], capture_output=True, text=True)
        assert "ConfigError" in ended.stderr
        assert "cannot be written (Permission denied)" in ended.stderr


@pytest.mark.parametrize("name", [None, "discriminator.safetensors", "learnt.json", "README.md"])
def test_voices_of_earlier_versions_are_known_by_what_only_we_write(tmp_path: Path, name: str | None) -> None:
    place = tmp_path / "voice"
    place.mkdir()
    (place / "config.json").write_text('{"model_type": "vits"}')
    (place / "model.safetensors").write_text("")
    if name is not None:
        (place / name).write_text("Text in, speech out. Made with vits_trainer.\n")
    assert files.is_ours(place, voice_versions.VOICE) == (name is not None)
    voice_versions.require_place(place, "output_dir", {})  # it becomes a version, whoever made it


def test_voice_that_we_did_not_make_is_kept_for_ever(tmp_path: Path) -> None:
    served = voice(tmp_path / "final_model", "downloaded")
    (served / "discriminator.safetensors").unlink()
    for n in range(4):
        install(tmp_path, f"v{n}", keep=1)
    kept = {path.name for path in (tmp_path / "final_model_versions").iterdir()}
    assert kept == {"0", "3"}
    assert (tmp_path / "final_model_versions/0/model.safetensors").read_text() == "downloaded"


def test_folders_of_others_among_the_versions_are_left_alone(tmp_path: Path) -> None:
    voice(tmp_path / "final_model", "trained")
    for name in ("0", "2024", "rolled-back-1"):
        (tmp_path / "final_model_versions" / name).mkdir(parents=True)
        (tmp_path / "final_model_versions" / name / "mine").write_text("precious")
    for n in range(3):
        install(tmp_path, f"v{n}", keep=1)
    found = {path.parent.name for path in (tmp_path / "final_model_versions").rglob("mine")}
    assert found == {"earlier-0", "2024", "rolled-back-1"}


def test_others_files_stay_in_the_place_whichever_voice_comes(tmp_path: Path) -> None:
    served = voice(tmp_path / "final_model", "trained")
    (served / "MY_NOTES.md").write_text("mine")
    (served / "plots").mkdir()
    (served / "plots/a.png").write_text("mine")
    for words in ("one", "two"):
        install(tmp_path, words, keep=1)
        assert content(served) == words
        assert ((served / "MY_NOTES.md").read_text(), (served / "plots/a.png").read_text()) == ("mine", "mine")
    with voice_versions.exclusive(served):
        voice_versions.roll_back(served)
    assert content(served) == "one"
    assert (served / "plots/a.png").read_text() == "mine"
    left = [path.name for path in (tmp_path / "final_model_versions").rglob("*")]
    assert not {"MY_NOTES.md", "plots"} & set(left)
    voice_versions.set_apart(served, tmp_path / "refused")
    assert content(tmp_path / "refused") == "one"
    assert sorted(path.name for path in served.iterdir()) == [files.MARKER, "MY_NOTES.md", "plots"]
    install(tmp_path, "three")
    assert content(served) == "three"
    assert (served / "plots/a.png").read_text() == "mine"


def test_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    voice(tmp_path / "big/disk", "trained")
    (tmp_path / "final_model").symlink_to("big/disk")
    install(tmp_path, "one")
    assert (tmp_path / "final_model").readlink() == Path("big/disk")
    assert content(tmp_path / "big/disk") == "one"
    assert content(tmp_path / "big/disk_versions/0") == "trained"


def test_link_to_nothing_is_followed(tmp_path: Path) -> None:
    (tmp_path / "final_model").symlink_to("big/disk")
    install(tmp_path, "one")
    assert content(tmp_path / "big/disk") == "one"
    assert (tmp_path / "final_model").is_symlink()


def test_voice_gets_a_number_only_where_there_was_one(tmp_path: Path) -> None:
    place = tmp_path / "final_model"
    for words in ("one", "two", "three"):
        with voice_versions.exclusive(place), voice_versions.replacing(place, 0) as folder:
            shutil.copytree(voice(tmp_path / words, words), folder, dirs_exist_ok=True)
    assert voice_versions.read_learnt(place).version == 2
    assert not (tmp_path / "final_model_versions/0/learnt.json").exists()
    assert content(tmp_path / "final_model_versions/1") == "two"
