"""Real ``accelerate launch`` with the configurations that come with the project."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from tests.voices import metrics, prepared_folder, train_flags

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "accelerate_configs"
WATCHDOG_S = 240

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launched")
    prepared_folder(folder)
    return folder


def command_of(config: str, *target: str) -> list[str]:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{config}.yaml")]
    return [*launcher, *target]


def launch(config: str, target: list[str], flags: list[str]) -> subprocess.CompletedProcess[str]:
    # A hang is the failure that this guards against: the watchdog is far above what these runs take.
    return subprocess.run(
        [*command_of(config, *target, "train_vits"), *flags],
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def flags_for(prepared: Path, folder: Path, **changes: object) -> list[str]:
    return train_flags(folder, data_dir=prepared / "training", runs_dir=folder / "training/runs", **changes)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_is_accelerates(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.mixed_precision == "no"  # --precision decides
    assert config.use_cpu == path.stem.startswith("cpu")


def test_one_process(prepared: Path, tmp_path: Path) -> None:
    ended = launch("cpu", ["-m", "vits_trainer"], flags_for(prepared, tmp_path, max_updates=2))
    assert ended.returncode == 0, ended.stderr
    assert "weights of all 1 rank(s)" in ended.stderr
    assert (tmp_path / "final_model/model.safetensors").is_file()


def test_two_processes_end_with_equal_weights(prepared: Path, tmp_path: Path) -> None:
    flags = flags_for(prepared, tmp_path, batch_size=2, gradient_accumulation_steps=2, max_updates=3)
    ended = launch("cpu_2proc", ["-m", "vits_trainer"], flags)
    assert ended.returncode == 0, ended.stderr
    # Each rank hashes its own weights; unequal ones would have raised DivergedRanksError.
    assert re.search(r"weights of all 2 rank\(s\): sha256 [0-9a-f]{64}", ended.stderr)
    # 9 clips, 8 an update: a whole one, then one clip for which one rank has silence, then a whole one.
    assert [line["data/trained"] for line in metrics(tmp_path) if "data/trained" in line] == [8, 9, 17]


def test_gradients_of_unequal_ranks_are_the_joined_batchs(prepared: Path) -> None:
    """And each network is synchronised once in its own step, however many micro-batches it has."""
    script = str(ROOT / "tests/distributed/gradients.py")
    ended = subprocess.run(
        command_of("cpu_2proc", script, str(prepared / "training")),
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == 0, ended.stderr
    found = re.findall(r"(generator|discriminator) (\d+) of (\d+) (\S+)", ended.stdout)
    assert {name for name, *_ in found} == {"generator", "discriminator"}
    for _, synchronised, buckets, distance in found:
        assert synchronised == buckets
        assert float(distance) < 1e-12
