"""Worker processes of a preparation: imports, clips in flight, killed workers and parents."""

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import audio
from tests.support.limits import HANG_S
from tests.support.preparation import lj_speech, prepare_into
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.preparation import pipeline
from vits_trainer.utils.errors import VitsTrainerError


def test_a_killed_worker_is_an_error_without_a_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "convert_clip", audio.killed_worker)
    with pytest.raises(VitsTrainerError, match="worker process of prepare_data was killed") as caught:
        prepare_into(tmp_path / "out", lj_speech(tmp_path / "set", ["a", "b", "c"]), processes=2)
    assert caught.value.exit_code == 1
    assert "at each of the clips c0, c1, c2." in str(caught.value)


def test_a_clip_that_kills_its_worker_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "convert_clip", audio.killed_by_one_clip)
    summary = prepare_into(tmp_path / "out", lj_speech(tmp_path / "set", ["a", "b", "c", "d"]), processes=2)
    assert (summary.accepted, summary.rejected) == (3, {"unreadable-audio": 1})
    assert "c1,unreadable-audio,the process that decodes it dies" in (tmp_path / "out" / "rejected.csv").read_text()
    assert len(list((tmp_path / "out" / "wavs").iterdir())) == 3


def test_workers_do_not_import_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "convert_clip", audio.without_torch)
    prepare_into(tmp_path / "out", lj_speech(tmp_path / "set", ["a"]))
    assert (tmp_path / "out" / "wavs" / "audio_000000.wav").read_text() == ""


def test_only_a_few_clips_are_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parquet rows contain the audio: reading far ahead would fill the memory."""
    source = pipeline.open_source(PrepareConfig(dataset=str(lj_speech(tmp_path / "set", [f"a{n}" for n in range(30)]))))
    read = [0]

    def counted():
        for clip in source.clips:
            read[0] += 1
            yield clip

    monkeypatch.setattr(pipeline, "open_source", lambda _: replace(source, clips=counted()))
    prepare_into(tmp_path / "out", tmp_path, max_samples=2)
    assert 2 <= read[0] <= 8


def _children(process_id: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_workers_exit_when_the_preparation_is_killed(tmp_path: Path) -> None:
    dataset = lj_speech(tmp_path / "set", ["a"])
    (dataset / "metadata.csv").write_text("c0|a\n" * 20_000)
    command = [sys.executable, "-m", "vits_trainer", "prepare_data", "--dataset", str(dataset), "--processes", "2"]
    running = subprocess.Popen([*command, "--output_dir", str(tmp_path / "out")])
    wavs = tmp_path / "out" / "wavs"
    deadline_s = time.monotonic() + HANG_S
    while not (wavs / "audio_000000.wav").exists():
        assert running.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    workers = _children(running.pid)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert len(workers) >= 2
    while any(Path(f"/proc/{worker}").exists() and not _is_zombie(worker) for worker in workers):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    prepare_into(tmp_path / "out", lj_speech(tmp_path / "few", ["a"]))
    assert len(list(wavs.iterdir())) == 1


def _is_zombie(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
