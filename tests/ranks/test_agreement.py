"""Ranks that differ in data, weights or settings are reported before the first update."""

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.reliability.rows import write_tuning_config, write_voice
from tests.support.audio import voice
from tests.support.fork_server import python
from tests.support.launch import ROOT, command_of, environment, free_port
from tests.support.limits import HANG_S
from tests.support.shards import write_shards
from tests.support.voices import prepared_folder, train_flags

pytestmark = pytest.mark.ranks

STREAM = {"streaming": "true", "data_workers": 1, "validation_fraction": 0.1}
SHARDS = {"clips_of": (12, 9), "group_clips": 3}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with twelve clips, shards, and a voice."""
    folder = tmp_path_factory.mktemp("equal")
    prepared_folder(folder, clips=12)
    write_shards(folder / "shards", **SHARDS)
    write_voice(folder)
    return folder


class Ended(NamedTuple):
    codes: list[int]
    output: list[str]
    """Output to stderr; both per rank."""


def ranks(flags: list[str], *own: Sequence[object], folders: Sequence[Path] = ()) -> Ended:
    """Runs ranks without a launcher, which would replace their exit codes by its own.

    Args:
        flags: of all ranks.
        own: additional flags of each rank.
        folders: working directory of each rank.
    """
    common = {"WORLD_SIZE": len(own), "LOCAL_WORLD_SIZE": len(own), "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": free_port(), "ACCELERATE_USE_CPU": "true"}
    started = []
    for rank, additional in enumerate(own):
        variables = environment(**common, RANK=rank, LOCAL_RANK=rank)
        command = [python(), "-m", "vits_trainer", "train_vits", *flags, *map(str, additional)]
        cwd = folders[rank] if folders else ROOT
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=cwd, env=variables))
    output = [process.communicate(timeout=HANG_S)[1] for process in started]
    return Ended([process.returncode for process in started], output)


def flags_of(source: Path, folder: Path, **changes: object) -> list[str]:
    settings = {"report_to": "none", "max_updates": 4, "validation_samples": 0, "batch_size": 2}
    settings |= {"data_dir": source / "training", "runs_dir": folder / "runs", **changes}
    return train_flags(folder, **settings)


def assert_reported(ended: Ended, *expected: str) -> None:
    """Asserts that all ranks print the same message and exit with 2, without a traceback."""
    assert set(ended.codes) == {2}, ended
    assert "Traceback" not in "".join(ended.output)
    lines = [line for output in ended.output for line in output.splitlines() if line.startswith("vits-trainer: ")]
    assert len(lines) == len(ended.codes)
    assert len(set(lines)) == 1
    for word in expected:
        assert word in lines[0]


def local_copy(source: Path, folder: Path, name: str = "training") -> Path:
    return shutil.copytree(source / name, folder / f"own_{name}", ignore=shutil.ignore_patterns("runs"))


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
    ("change", "expected"),
    [
        (other_text, ["0 of 12 on rank 0, 1 of 12 on rank 1", "'number 3 speaks' (30444 bytes) on rank 0, 'speaks 3"]),
        (fewer, ["clips: 12 on rank 0, 10 on rank 1", "audio_000010.wav: 'number 10 speaks'", "missing on rank 1"]),
        (silent, ["recordings different from rank 0: 0 of 12 on rank 0, 12 of 12 on rank 1", ".wav: "]),
    ],
)
def test_different_clips_are_reported(
    source: Path, tmp_path: Path, change: Callable[[Path], None], expected: list[str]
) -> None:
    data = local_copy(source, tmp_path)
    change(data)
    assert_reported(ranks(flags_of(source, tmp_path), [], ["--data_dir", data]), *expected)
    assert not (tmp_path / "final_model").exists()


def test_different_settings_are_reported_with_the_ranks_of_each_value(source: Path, tmp_path: Path) -> None:
    own = ["--learning_rate", "0.25", "--max_updates", "3", "--batch_size", "3", "--layerdrop", "0.5"]
    expected = ["--learning_rate: 0.001 on ranks 0-1, 0.25 on rank 2", "--max_updates: 4 on ranks 0-1, 3 on rank 2"]
    expected += ["--batch_size: 2 on ranks 0-1, 3 on rank 2", "--layerdrop: 0.0 on ranks 0-1, 0.5 on rank 2"]
    assert_reported(ranks(flags_of(source, tmp_path), [], [], own), *expected)


def test_paths_and_settings_of_rank_0_may_differ(source: Path, tmp_path: Path) -> None:
    own = ["--data_dir", local_copy(source, tmp_path), "--model_name", local_copy(source, tmp_path, "voice")]
    own += ["--runs_dir", tmp_path / "r", "--output_dir", tmp_path / "o", "--checkpoint_dir", tmp_path / "c"]
    own += ["--data_workers", "1", "--report_to", "tensorboard"]
    ended = ranks(flags_of(source, tmp_path, config=write_tuning_config(source), max_updates=1), [], own)
    assert ended.codes == [0, 0], ended
    assert (tmp_path / "final_model/model.safetensors").is_file()


@pytest.mark.parametrize("file", ["model.safetensors", "vocab.json"])
def test_different_voice_is_reported(source: Path, tmp_path: Path, file: str) -> None:
    own = local_copy(source, tmp_path, "voice")
    content = (own / file).read_bytes()
    # Swaps the ids of two tokens; flips the sign of the last weight.
    changed = content.replace(b'"a"', b'"?"').replace(b'"r"', b'"a"').replace(b'"?"', b'"r"')
    (own / file).write_bytes(changed if file == "vocab.json" else content[:-1] + bytes([content[-1] ^ 128]))
    ended = ranks(flags_of(source, tmp_path, config=write_tuning_config(source)), [], ["--model_name", own])
    assert_reported(ended, f"--model_name {file}: ", " on rank 0, ", " on rank 1")


def test_checkpoint_missing_on_the_other_machine_is_reported(source: Path, tmp_path: Path) -> None:
    """Two ranks with different working directories and a relative path, as on machines without a shared disk."""
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    flags = flags_of(source, tmp_path, checkpoint_dir="checkpoints", max_updates=1, resume_from_checkpoint="auto")
    assert ranks(flags, [], [], folders=folders).codes == [0, 0]
    ended = ranks([*flags, "--max_updates", "2"], [], [], folders=folders)
    assert_reported(ended, "checkpoint-1/generator.safetensors: ", "missing on rank 1")


def sizes_bytes(folder: Path) -> list[int]:
    return [path.stat().st_size for path in sorted(folder.glob("shards/*"))]


def test_different_shards_of_a_stream_are_reported(source: Path, tmp_path: Path) -> None:
    own = write_shards(tmp_path / "shards", **SHARDS, base_s=0.7)
    ended = ranks(flags_of(source, tmp_path, data_dir=source / "shards", **STREAM), [], ["--data_dir", own])
    message = "clips different from rank 0: 0 of 2 on rank 0, 2 of 2 on rank 1"
    assert_reported(ended, message, "shard_00000.parquet: ")


def test_row_groups_of_a_stream_are_compared_if_the_manifests_are_equal(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Speech of another pitch, with the same number of samples and bytes."""
    for factor in range(2, 50):
        monkeypatch.setattr("tests.support.shards.voice", lambda s, hz, pitch, by=factor: voice(s, hz, by * pitch / 10))
        own = write_shards(tmp_path / f"shards_{factor}", **SHARDS)
        if sizes_bytes(own) == sizes_bytes(source / "shards"):
            break
    shutil.copyfile(source / "shards/shards.json", own / "shards.json")
    ended = ranks(flags_of(source, tmp_path, data_dir=source / "shards", **STREAM), [], ["--data_dir", own])
    message = "recordings different from rank 0: 0 of 7 on rank 0, 7 of 7 on rank 1"
    assert_reported(ended, message, "parquet row group")


def test_differences_are_reported_under_the_launcher(source: Path, tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("programs") / "unequal_learning_rate.py")
    ended = subprocess.run(
        [*command_of("cpu_2proc", script, "train_vits"), *flags_of(source, tmp_path)],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        cwd=ROOT,
        env=environment(),
    )
    assert ended.returncode == 1
    lines = [line for line in ended.stderr.splitlines() if line.startswith("vits-trainer: ")]
    assert lines
    assert all("--learning_rate: 0.001 on rank 0, 0.002 on rank 1" in line for line in lines)
    assert "SIGABRT" not in ended.stderr
