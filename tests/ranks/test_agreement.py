"""Ranks that are about to train on other data, from other weights or in other ways say so before the first update."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.reliability.rows import write_tuning_config, write_voice
from tests.support.audio import voice
from tests.support.launch import ROOT, command_of, free_port
from tests.support.limits import HANG_S
from tests.support.shards import write_shards
from tests.support.voices import prepared_folder, train_flags

pytestmark = pytest.mark.ranks

STREAM = {"streaming": "true", "data_workers": 1, "validation_fraction": 0.1}
SHARDS = {"clips_of": (12, 9), "group_clips": 3}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve clips, shards, and a voice."""
    folder = tmp_path_factory.mktemp("equal")
    prepared_folder(folder, clips=12)
    write_shards(folder / "shards", **SHARDS)
    write_voice(folder)
    return folder


class Ended(NamedTuple):
    codes: list[int]
    said: list[str]
    """On stderr; both of each rank."""


def ranks(flags: list[str], *own: Sequence[object], folders: Sequence[Path] = ()) -> Ended:
    """Runs without a launcher, whose exit code would stand for theirs.

    Args:
        flags: of all ranks.
        own: further ones of each.
        folders: that they run in.
    """
    common = {"WORLD_SIZE": len(own), "LOCAL_WORLD_SIZE": len(own), "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": free_port(), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": 1, "PYTHONPATH": ROOT}
    started = []
    for rank, further in enumerate(own):
        environment = {name: str(value) for name, value in {**common, "RANK": rank, "LOCAL_RANK": rank}.items()}
        command = [sys.executable, "-m", "vits_trainer", "train_vits", *flags, *map(str, further)]
        here = folders[rank] if folders else ROOT
        started.append(
            subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=here, env={**os.environ, **environment})
        )
    said = [process.communicate(timeout=HANG_S)[1] for process in started]
    return Ended([process.returncode for process in started], said)


def flags_of(place: Path, folder: Path, **changes: object) -> list[str]:
    given = {"report_to": "none", "max_updates": 4, "validation_samples": 0, "batch_size": 2}
    given |= {"data_dir": place / "training", "runs_dir": folder / "runs", **changes}
    return train_flags(folder, **given)


def require_told(ended: Ended, *words: str) -> None:
    """The same line on every rank, with exit code 2: no traceback, no abort."""
    assert set(ended.codes) == {2}, ended
    assert "Traceback" not in "".join(ended.said)
    lines = [line for said in ended.said for line in said.splitlines() if line.startswith("vits-trainer: ")]
    assert len(lines) == len(ended.codes)
    assert len(set(lines)) == 1
    for word in words:
        assert word in lines[0]


def local_copy(place: Path, folder: Path, name: str = "training") -> Path:
    return shutil.copytree(place / name, folder / f"own_{name}", ignore=shutil.ignore_patterns("runs"))


def other_text(data: Path) -> None:
    text = (data / "metadata.csv").read_text("utf-8")
    (data / "metadata.csv").write_text(text.replace("number 3 speaks", "speaks 3 number"), "utf-8")


def fewer(data: Path) -> None:
    lines = (data / "metadata.csv").read_text("utf-8").splitlines(keepends=True)
    (data / "metadata.csv").write_text("".join(lines[:-2]), "utf-8")


def silent(data: Path) -> None:
    for path in (data / "wavs").iterdir():
        content = path.read_bytes()
        path.write_bytes(content[:44] + bytes(len(content) - 44))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_text, ["0 of 12 on rank 0, 1 of 12 on rank 1", "'number 3 speaks' (30444 bytes) on rank 0, 'speaks 3"]),
        (fewer, ["clips: 12 on rank 0, 10 on rank 1", "audio_000010.wav: 'number 10 speaks'", "missing on rank 1"]),
        (silent, ["recordings unlike rank 0's: 0 of 12 on rank 0, 12 of 12 on rank 1", ".wav: "]),
    ],
)
def test_other_clips_are_named(place: Path, tmp_path: Path, change: Callable[[Path], None], words: list[str]) -> None:
    data = local_copy(place, tmp_path)
    change(data)
    require_told(ranks(flags_of(place, tmp_path), [], ["--data_dir", data]), *words)
    assert not (tmp_path / "final_model").exists()


def test_other_settings_are_named_with_the_ranks_of_each_value(place: Path, tmp_path: Path) -> None:
    own = ["--learning_rate", "0.25", "--max_updates", "3", "--batch_size", "3", "--layerdrop", "0.5"]
    words = ["--learning_rate: 0.001 on ranks 0-1, 0.25 on rank 2", "--max_updates: 4 on ranks 0-1, 3 on rank 2"]
    words += ["--batch_size: 2 on ranks 0-1, 3 on rank 2", "--layerdrop: 0.0 on ranks 0-1, 0.5 on rank 2"]
    require_told(ranks(flags_of(place, tmp_path), [], [], own), *words)


def test_places_and_what_rank_0_does_alone_may_differ(place: Path, tmp_path: Path) -> None:
    own = ["--data_dir", local_copy(place, tmp_path), "--model_name", local_copy(place, tmp_path, "voice")]
    own += ["--runs_dir", tmp_path / "r", "--output_dir", tmp_path / "o", "--checkpoint_dir", tmp_path / "c"]
    own += ["--data_workers", "1", "--report_to", "tensorboard"]
    ended = ranks(flags_of(place, tmp_path, config=write_tuning_config(place), max_updates=1), [], own)
    assert ended.codes == [0, 0], ended
    assert (tmp_path / "final_model/model.safetensors").is_file()


@pytest.mark.parametrize("file", ["model.safetensors", "vocab.json"])
def test_other_voice_is_named(place: Path, tmp_path: Path, file: str) -> None:
    own = local_copy(place, tmp_path, "voice")
    content = (own / file).read_bytes()
    # Two tokens change their ids; the last weight has another sign.
    changed = content.replace(b'"a"', b'"?"').replace(b'"r"', b'"a"').replace(b'"?"', b'"r"')
    (own / file).write_bytes(changed if file == "vocab.json" else content[:-1] + bytes([content[-1] ^ 128]))
    ended = ranks(flags_of(place, tmp_path, config=write_tuning_config(place)), [], ["--model_name", own])
    require_told(ended, f"--model_name {file}: ", " on rank 0, ", " on rank 1")


def test_checkpoint_that_the_other_machine_lacks_is_named(place: Path, tmp_path: Path) -> None:
    """Two ranks in folders of their own, and a relative path: as on two machines that share no disk."""
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    flags = flags_of(place, tmp_path, checkpoint_dir="checkpoints", max_updates=1, resume_from_checkpoint="auto")
    assert ranks(flags, [], [], folders=folders).codes == [0, 0]
    ended = ranks([*flags, "--max_updates", "2"], [], [], folders=folders)
    require_told(ended, "checkpoint-1/generator.safetensors: ", "missing on rank 1")


def sizes_bytes(folder: Path) -> list[int]:
    return [path.stat().st_size for path in sorted(folder.glob("shards/*"))]


def test_other_shards_of_a_stream_are_named(place: Path, tmp_path: Path) -> None:
    own = write_shards(tmp_path / "shards", **SHARDS, base_s=0.7)
    ended = ranks(flags_of(place, tmp_path, data_dir=place / "shards", **STREAM), [], ["--data_dir", own])
    require_told(ended, "clips unlike rank 0's: 0 of 2 on rank 0, 2 of 2 on rank 1", "shards/shard_00000.parquet: ")


def test_row_groups_of_a_stream_are_compared_where_the_manifest_is_the_same(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Speech of another pitch: as many samples; and as many bytes, although checksums differ in length."""
    for factor in range(2, 50):
        monkeypatch.setattr("tests.support.shards.voice", lambda s, hz, pitch, by=factor: voice(s, hz, by * pitch / 10))
        own = write_shards(tmp_path / f"shards_{factor}", **SHARDS)
        if sizes_bytes(own) == sizes_bytes(place / "shards"):
            break
    shutil.copyfile(place / "shards/shards.json", own / "shards.json")
    ended = ranks(flags_of(place, tmp_path, data_dir=place / "shards", **STREAM), [], ["--data_dir", own])
    require_told(ended, "recordings unlike rank 0's: 0 of 7 on rank 0, 7 of 7 on rank 1", "0000.parquet row group")


def test_behind_the_launcher_the_ranks_tell_it_too(place: Path, tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("programs") / "unequal_learning_rate.py")
    ended = subprocess.run(
        [*command_of("cpu_2proc", script, "train_vits"), *flags_of(place, tmp_path)],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == 1
    lines = [line for line in ended.stderr.splitlines() if line.startswith("vits-trainer: ")]
    assert lines
    assert all("--learning_rate: 0.001 on rank 0, 0.002 on rank 1" in line for line in lines)
    assert "SIGABRT" not in ended.stderr
