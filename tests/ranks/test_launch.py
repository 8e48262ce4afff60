"""Runs under ``accelerate launch`` with the project's configurations."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from tests.support.fork_server import python
from tests.support.launch import CONFIGS, ROOT, command_of, environment, free_port
from tests.support.limits import HANG_S
from tests.support.voices import many_speakers, metrics, objective_options, prepared_folder, train_flags

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launched")
    prepared_folder(folder)
    return folder


def launch(
    config: str, target: list[str], flags: list[str], program: str | None = None
) -> subprocess.CompletedProcess[str]:
    # The timeout is far above the duration of these runs: it ends a hang.
    return subprocess.run(
        [*command_of(config, *target, "train_vits", program=program), *flags],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        cwd=ROOT,
        env=environment(PYTHON_EXEC=program or python()),
    )


def flags_for(prepared: Path, folder: Path, **changes: object) -> list[str]:
    return train_flags(folder, data_dir=prepared / "training", runs_dir=folder / "training/runs", **changes)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_loads_every_configuration(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.mixed_precision == "no"  # --precision decides
    assert config.use_cpu == path.stem.startswith("cpu")


@pytest.mark.parametrize("config", ["single_gpu", "multi_gpu"])
def test_gpu_configurations_start_the_same_number_of_processes_on_the_cpu(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    if config == "single_gpu":  # otherwise a key is looked for, which sets up wandb earlier
        monkeypatch.setenv("WANDB_MODE", "offline")
    ended = launch(config, ["-m", "vits_trainer"], flags_for(prepared, tmp_path, max_updates=1))
    assert ended.returncode == 0, ended.stderr
    assert ("1 process on CPU" if config == "single_gpu" else "2 processes on 1 host") in ended.stderr
    assert "wandb: " not in ended.stderr  # its own messages, such as of linked files


def documented_torchrun() -> list[str]:
    """Returns the options of the torchrun command for several machines in docs/scaling.md."""
    page = (ROOT / "docs/scaling.md").read_text("utf-8").replace("\\\n", " ")
    (line,) = re.findall(r"^ +torchrun (--nnodes 2 .*)$", page, re.MULTILINE)
    return shlex.split(line)


def test_documented_torchrun_command_starts_two_machines(prepared: Path, tmp_path: Path) -> None:
    documented = documented_torchrun()
    options = documented[: documented.index("-m")]
    local = {"--nproc_per_node": "1", "--master_addr": "127.0.0.1", "--master_port": str(free_port())}
    flags = flags_for(prepared, tmp_path, max_updates=1)
    launchers = []
    for machine in (0, 1):
        settings = dict(zip(options[::2], options[1::2], strict=True)) | local | {"--node_rank": str(machine)}
        arguments = [word for item in settings.items() for word in item]
        command = [python(), "-m", "torch.distributed.run", *arguments]
        command += ["-m", "vits_trainer", "train_vits", *flags]
        variables = environment(ACCELERATE_USE_CPU="true")
        launchers.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=variables))
    output = [launcher.communicate(timeout=HANG_S)[1] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], output
    assert "weights of all 2 ranks" in output[0]


def test_one_process_instead_of_two_is_rejected(prepared: Path, tmp_path: Path) -> None:
    """accelerate starts it without an error."""
    multi_cpu = tmp_path / "multi_cpu.yaml"
    multi_cpu.write_text((CONFIGS / "cpu_2proc.yaml").read_text().replace("'MULTI_GPU'", "'MULTI_CPU'"))
    launcher = [python(), "-m", "accelerate.commands.launch"]
    for options in (["--cpu", "--num_processes", "2"], ["--config_file", str(multi_cpu)]):
        ended = subprocess.run(
            [*launcher, *options, "-m", "vits_trainer", "train_vits", *flags_for(prepared, tmp_path)],
            capture_output=True,
            text=True,
            timeout=HANG_S,
            cwd=ROOT,
            env=environment(),
        )
        assert ended.returncode == 1
        (line,) = (line for line in ended.stderr.splitlines() if line.startswith("vits-trainer: "))
        assert "asked for several processes and started one" in line
        assert "--config_file accelerate_configs/cpu_2proc.yaml" in line
        assert "returned non-zero exit status 2" in ended.stderr
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, "Slurm started 2 tasks that are not connected"),
        ({"ACCELERATE_USE_FSDP": "true"}, "asks for FSDP"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "asks for DeepSpeed"),
    ],
)
def test_unsupported_launcher_exits_with_2(
    prepared: Path, tmp_path: Path, variables: dict[str, str], expected: str
) -> None:
    ended = subprocess.run(
        [python(), "-m", "vits_trainer", "train_vits", *flags_for(prepared, tmp_path)],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        cwd=ROOT,
        env=environment(**variables),
    )
    assert ended.returncode == 2, ended.stderr
    assert expected in ended.stderr
    assert "Traceback" not in ended.stderr


def test_one_process(prepared: Path, tmp_path: Path) -> None:
    ended = launch("cpu", ["-m", "vits_trainer"], flags_for(prepared, tmp_path, max_updates=2))
    assert ended.returncode == 0, ended.stderr
    assert "1 process on CPU" in ended.stderr
    assert "weights of all" not in ended.stderr  # nothing to compare
    assert (tmp_path / "final_model/model.safetensors").is_file()


def test_two_processes_end_with_equal_weights(prepared: Path, tmp_path: Path) -> None:
    sizes = {"batch_size": 2, "gradient_accumulation_steps": 2, "max_updates": 3}
    flags = flags_for(prepared, tmp_path, **sizes, **objective_options(tmp_path))
    ended = launch("cpu_2proc", ["-m", "vits_trainer"], flags, sys.executable)  # new interpreters, as users start them
    assert ended.returncode == 0, ended.stderr
    # Each rank hashes its own weights; unequal ones would have raised DivergedRanksError.
    assert re.search(r"weights of all 2 ranks: sha256 [0-9a-f]{64}", ended.stderr)
    # 9 clips, at most 8 per update: updates of 4 and of 5.
    assert [line["data/trained"] for line in metrics(tmp_path) if "data/trained" in line][1:] == [9, 14]


def test_gradients_of_unequal_ranks_equal_those_of_the_combined_batch(prepared: Path) -> None:
    """Each network synchronizes gradients once per step, whatever the number of micro-batches."""
    script = str(ROOT / "tests/ranks/programs/compare_gradients.py")
    ended = subprocess.run(
        command_of("cpu_2proc", script, str(prepared / "training")),
        capture_output=True,
        text=True,
        timeout=HANG_S,
        cwd=ROOT,
        env=environment(),
    )
    assert ended.returncode == 0, ended.stderr
    results = re.findall(r"(generator|discriminator) (\d+) of (\d+) (\S+)", ended.stdout)
    assert {name for name, *_ in results} == {"generator", "discriminator"}
    for _, synchronized, buckets, distance in results:
        assert synchronized == buckets
        assert float(distance) < 1e-12


def test_metrics_per_speaker_are_equal_on_one_rank_and_on_two(tmp_path: Path) -> None:
    """The clips of each speaker are on both ranks, in unequal numbers."""
    data = many_speakers(tmp_path, {"ava": 4, "mem": 2, "zin": 1})
    results = []
    for config in ("cpu", "cpu_2proc"):
        script, result = str(ROOT / "tests/ranks/programs/validate_speakers.py"), tmp_path / f"{config}.json"
        ended = subprocess.run(
            command_of(config, script, str(data), str(result)),
            capture_output=True,
            text=True,
            timeout=HANG_S,
            cwd=ROOT,
            env=environment(),
        )
        assert ended.returncode == 0, ended.stderr
        results.append(json.loads(result.read_text()))
    (one, one_each), (two, two_each) = results
    assert two == pytest.approx(one, rel=1e-9)
    assert [(row["speaker"], row["clips"]) for row in two_each] == [("ava", 4), ("mem", 2), ("zin", 1)]
    assert [row["mel"] for row in two_each] == pytest.approx([row["mel"] for row in one_each], rel=1e-9)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_close_joins_all_gloo_threads(tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("programs") / "close_ranks.py")
    subprocess.run(command_of("cpu_2proc", script), check=True, cwd=tmp_path, env=environment(), timeout=HANG_S)
    for rank in range(2):
        before, after = map(int, (tmp_path / f"threads-{rank}").read_text().split())
        assert before > 0
        assert after == 0


def test_frozen_parts_are_unchanged_on_two_ranks(prepared: Path, tmp_path: Path) -> None:
    """DistributedDataParallel waits for the gradients of all parameters that require one."""
    flags = flags_for(prepared, tmp_path, freeze="text_encoder,decoder", ema_decay=0.9, save_every_updates=1)
    ended = launch("cpu_2proc", ["-m", "vits_trainer"], [*flags, "--max_updates", "2"])
    assert ended.returncode == 0, ended.stderr
    one, two = (load_file(tmp_path / f"checkpoints/checkpoint-{n}/generator.safetensors") for n in (1, 2))
    changed = {name.split(".")[0] for name in one if not torch.equal(one[name], two[name])}
    assert changed == {"posterior_encoder", "flow", "duration_predictor"}
