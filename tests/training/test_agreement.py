"""Comparison of the ranks before training; the ranks are threads here."""

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.limits import HANG_S
from vits_trainer.config.framing import AudioSpec
from vits_trainer.config.train import TrainConfig
from vits_trainer.data.dataset import PreparedClipDataset
from vits_trainer.data.prepared import open_prepared
from vits_trainer.data.training_data import PreparedTrainingData
from vits_trainer.text.tokenizer import build_tokenizer
from vits_trainer.training import agreement
from vits_trainer.training.agreement import NOT_COMPARED, rank_differences, require_same_recordings, require_same_run
from vits_trainer.utils.errors import UnequalRanksError


class Ranks:
    """A runtime of several threads, each a rank."""

    def __init__(self, count: int) -> None:
        self.items: list[Any] = [None] * count
        self.barrier = threading.Barrier(count, timeout=HANG_S)

    def runtime(self, rank: int) -> Any:
        def gather(item: Any) -> list[Any]:
            self.items[rank] = item
            self.barrier.wait()
            items = list(self.items)
            self.barrier.wait()
            return items

        def from_main(make: Callable[[], Any]) -> Any:
            return gather(make() if rank == 0 else None)[0]

        count = len(self.items)
        return SimpleNamespace(
            num_processes=count, process_index=rank, precision="fp32", all_gather_object=gather,
            on_main_then_broadcast=from_main,
        )


def error_of(*checks: Callable[[Any], None]) -> str | None:
    """Runs one check per rank; returns the error message of all ranks, or None if they agree."""
    ranks = Ranks(len(checks))

    def run(rank: int) -> str | None:
        try:
            checks[rank](ranks.runtime(rank))
        except UnequalRanksError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(len(checks)) as pool:
        (message,) = set(pool.map(run, range(len(checks))))
    return message


CONFIG = TrainConfig()


def data_of(folder: Path) -> PreparedTrainingData:
    prepared = open_prepared(folder)
    return PreparedTrainingData(CONFIG, prepared, range(len(prepared.rows)), [])


@pytest.fixture
def clips(folder: Path) -> PreparedTrainingData:
    return data_of(folder / "training")


def run_of(config: TrainConfig, prepared: Any) -> Callable[[Any], None]:
    return lambda runtime: require_same_run(config, prepared, runtime)


def test_differences_give_each_value_with_its_ranks() -> None:
    facts = [{"a": 1, "b": 0.5}, {"a": 1, "b": 0.25}, {"a": 1}, {"a": 1, "b": 0.5}]
    assert rank_differences(facts) == ["b: 0.5 on ranks 0+3, 0.25 on rank 1, missing on rank 2"]
    assert rank_differences(facts[:1]) == []


def test_equal_ranks_agree(clips: Any) -> None:
    assert error_of(*[run_of(CONFIG, clips)] * 3) is None


def other_value(value: Any) -> Any:
    """Returns another value of the same type."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case tuple():
            return (*value[:-1], value[-1] + 1) if value else ("x",)
        case None | str():
            return "other"
    return replace(value, **{fields(value)[0].name: other_value(getattr(value, fields(value)[0].name))})


@pytest.mark.parametrize("name", [field.name for field in fields(TrainConfig)])
def test_every_setting_is_compared_or_listed_as_not_compared(name: str, clips: Any) -> None:
    other = TrainConfig()
    object.__setattr__(other, name, other_value(getattr(other, name)))  # bypasses validation
    message = error_of(run_of(CONFIG, clips), run_of(other, clips))
    if name in NOT_COMPARED or name == "precision":  # the resolved precision is compared
        assert message is None
    else:
        assert f"--{name}" in str(message)
        assert "on rank 0" in str(message)


def test_settings_that_are_not_compared_exist() -> None:
    assert {field.name for field in fields(TrainConfig)} >= NOT_COMPARED


def test_different_versions_are_reported(clips: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch_versions: Iterator[str] = iter(["2.0", "2.1"])
    lock = threading.Lock()

    def of_rank() -> dict[str, str]:
        with lock:
            return {"torch": next(torch_versions), "wandb": "0"}

    monkeypatch.setattr(agreement, "versions", of_rank)
    message = str(error_of(run_of(CONFIG, clips), run_of(CONFIG, clips)))
    assert "version of torch: 2." in message
    assert "wandb" not in message


def lines_changed(folder: Path, change: Callable[[list[str]], Sequence[str]]) -> Any:
    path = folder / "training/metadata.csv"
    lines = path.read_text("utf-8").splitlines()
    path.write_text("".join(f"{line}\n" for line in change(lines)), "utf-8")
    return data_of(folder / "training")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda lines: lines[::-1], "order of the clips: "),
        (lambda lines: lines[1:], "clips: 10 on rank 0, 9 on rank 1"),
        (lambda lines: [f"{line}|ava" for line in lines], "10 of 10 on rank 1"),
        (lambda lines: [line.replace("speaks", "spoke") for line in lines], "'number 0 spoke' "),
        (lambda lines: [line + "x" * 90 for line in lines], "... "),
    ],
)
def test_different_lines_are_reported(folder: Path, clips: Any, change: Any, expected: str) -> None:
    other = lines_changed(folder, change)
    message = str(error_of(run_of(CONFIG, clips), run_of(CONFIG, other)))
    assert expected in message
    assert message.count(".wav: ") <= 6
    assert len(message) < 1500


def test_missing_file_has_another_size(folder: Path, clips: Any) -> None:
    assert clips.prepared.recordings.sizes_bytes  # computed before the file is removed
    next(iter(sorted((folder / "training/wavs").iterdir()))).unlink()
    other = data_of(folder / "training")
    assert "'number 0 speaks' (0 bytes) on rank 1" in str(error_of(run_of(CONFIG, clips), run_of(CONFIG, other)))


def reader_of(data: Path) -> PreparedClipDataset:
    prepared = open_prepared(data)
    return PreparedClipDataset(prepared, build_tokenizer(prepared.texts), AudioSpec(16000, 1024, 1024, 256), None)


def samples(reader: PreparedClipDataset) -> Callable[[Any], None]:
    data = PreparedTrainingData(CONFIG, reader.prepared, range(len(reader.prepared.rows)), [])
    return lambda runtime: require_same_recordings(data, reader, 1, runtime)


def copy_of(folder: Path) -> Path:
    return shutil.copytree(folder / "training", folder / "other")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (flip, "audio_000004.wav: "),
        (lambda path: path.write_bytes(b"no recording"), "unreadable-audio on rank 1"),
        (Path.unlink, "missing-file on rank 1"),
    ],
)
def test_different_recording_is_detected(folder: Path, change: Callable[[Path], Any], expected: str) -> None:
    """A single bit is enough."""
    other = copy_of(folder)
    change(other / "wavs/audio_000004.wav")
    message = str(error_of(samples(reader_of(folder / "training")), samples(reader_of(other))))
    assert "recordings different from rank 0: 0 of 10 on rank 0, 1 of 10 on rank 1" in message
    assert expected in message


def test_slow_rank_limits_the_compared_clips(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank reads all clips in time, the other only the first."""
    slow = reader_of(folder / "training")

    class Slow(PreparedClipDataset):
        def read(self, row: int) -> Any:
            threading.Event().wait(0.5)
            return super().read(row)

    slow.__class__ = Slow
    monkeypatch.setattr(agreement, "SAMPLE_S", 0.4)
    assert error_of(samples(reader_of(folder / "training")), samples(slow)) is None


def test_single_rank_reads_nothing() -> None:
    single = SimpleNamespace(num_processes=1)
    require_same_run(CONFIG, None, single)  # type: ignore[arg-type]
    require_same_recordings(None, None, 1, single)  # type: ignore[arg-type]
    agreement.require_same_start(replace(CONFIG, model_name="nowhere"), None, single)  # type: ignore[arg-type]


def start_of(**sources: Any) -> Callable[[Any], None]:
    return lambda runtime: agreement.require_same_start(replace(CONFIG, **sources), None, runtime)


def test_equal_files_at_different_paths_agree_and_different_ones_are_reported(tmp_path: Path) -> None:
    folders = [tmp_path / str(rank) for rank in range(3)]
    for folder, weights in zip(folders, (b"one", b"one", b"two"), strict=True):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(weights)
        (folder / "D_1.pth").write_bytes(weights)
        (folder / "README.md").write_text(str(folder))  # not compared
    one, same, other = (
        start_of(model_name=str(p), discriminator_from=str(p / "D_1.pth"), discriminator_encoder=str(p))
        for p in folders
    )
    assert error_of(one, same) is None
    message = str(error_of(one, same, other))
    assert "--model_name model.safetensors: 7692c3ad3540 on ranks 0-1, 3fc4ccfe7458 on rank 2" in message  # sha256sum
    assert "--discriminator_from: 7692c3ad3540 on ranks 0-1, 3fc4ccfe7458 on rank 2" in message
    assert "--discriminator_encoder model.safetensors: 7692c3ad3540 on ranks 0-1, 3fc4ccfe7458 on rank 2" in message


def test_hub_name_is_compared_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = iter(["a" * 40, "b" * 40])

    def cached(*_: object, **__: object) -> str:
        return str(tmp_path / f"models--owner--voice/snapshots/{next(commits)}/config.json")

    monkeypatch.setattr(agreement, "cached_file", cached)
    voice = start_of(model_name="owner/voice")
    assert "--model_name at commit: " in str(error_of(voice, voice))
