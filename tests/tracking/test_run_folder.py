"""The folder of a run: unique names, and one run at a time."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from vits_trainer.tracking import run_folder
from vits_trainer.utils import files
from vits_trainer.utils.errors import ConfigError

ROOT = Path(run_folder.__file__).parents[1]
NAMES = """
import sys
from pathlib import Path
from vits_trainer.tracking import run_folder
run_folder.time.strftime = lambda _: "train_vits-20260101-000000"
for _ in range(20):
    print(run_folder.new_name(Path(sys.argv[1])))
"""


def test_runs_started_in_the_same_second_have_unique_names(tmp_path: Path) -> None:
    command = [sys.executable, "-c", NAMES, str(tmp_path / "runs")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(3)]
    names = [name for process in started for name in process.communicate()[0].split()]
    assert len(names) == len(set(names)) == 60
    assert {path.name for path in (tmp_path / "runs").iterdir()} == set(names)
    assert {"train_vits-20260101-000000", "train_vits-20260101-000000-2"} <= set(names)


def test_name_contains_the_time(tmp_path: Path) -> None:
    assert re.fullmatch(r"train_vits-\d{8}-\d{6}", run_folder.new_name(tmp_path))


def test_folder_is_locked_by_one_run_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "_LOCK_TIMEOUT_S", 0)
    with run_folder.exclusive_run(tmp_path / "run"):
        with pytest.raises(ConfigError, match="--run_name run: a run of this name is active"):
            run_folder.exclusive_run(tmp_path / "run").__enter__()
        with run_folder.exclusive_run(tmp_path / "other"):
            pass
    with run_folder.exclusive_run(tmp_path / "run"):
        pass
    assert [path.name for path in (tmp_path / "run").iterdir()] == [files.MARKER]


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "samples/a.wav"])
def test_folder_with_foreign_files_is_rejected(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("precious")
    with pytest.raises(ConfigError, match=f"contains {name.partition('/')[0]}, but is not a run folder"):
        run_folder.exclusive_run(tmp_path).__enter__()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]


@pytest.mark.parametrize("names", [["STOP", "job.log"], ["config.yaml", "metrics.jsonl", "train.log"]])
def test_folder_with_other_files_or_of_an_earlier_version_is_accepted(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_text("")
    with run_folder.exclusive_run(tmp_path):
        assert files.is_ours(tmp_path, run_folder.RUN)


def test_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    for create in (run_folder.new_name, lambda folder: run_folder.exclusive_run(folder / "run").__enter__()):
        with pytest.raises(ConfigError, match=r"cannot be written .* Choose another --runs_dir"):
            create(tmp_path / "runs")
