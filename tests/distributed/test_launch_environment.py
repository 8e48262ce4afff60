"""Launchers that started too few processes, too many, or strangers to one another: refused, with a line that works."""

import re
import shlex

import pytest
import torch
from accelerate.commands.launch import launch_command_parser

from tests.support.launch import ROOT
from vits_trainer.distributed import launch_environment
from vits_trainer.distributed.runtime import Runtime
from vits_trainer.utils.errors import ConfigError

TORCHRUN = {"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "2", "MASTER_ADDR": "node-a"}
STEP = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True"}


def refusal(check, *arguments):
    with pytest.raises(ConfigError) as refused:
        check(*arguments)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def lines_that_work(message):
    """Each is one that accelerate launch parses, with a file that comes with the project."""
    found = re.findall(r"accelerate launch --config_file .*? -m vits_trainer train_vits", message)
    for line in found:
        arguments = launch_command_parser().parse_args(shlex.split(line)[2:])
        assert (ROOT / arguments.config_file).is_file()
    return found


@pytest.mark.parametrize(
    ("environment", "world_size"),
    [
        ({}, 1),
        (ACCELERATE, 1),
        (TORCHRUN, 16),
        ({**ACCELERATE, **TORCHRUN, **STEP}, 16),  # slurm.sh: one launcher a task
        ({"SLURM_NTASKS": "8"}, 1),  # the shell of salloc
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, 1),
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, 1),  # srun --ntasks=1 in a larger job
        # A batch script that calls torchrun itself, on one machine.
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "1"}, 8),
        (STEP | {"WORLD_SIZE": "2"}, 2),  # a task a rank
        ({"MASTER_ADDR": "node-a"}, 1),  # exported, and no launcher
        ({"WORLD_SIZE": "2", "OMPI_COMM_WORLD_SIZE": "2"}, 2),
    ],
)
def test_what_belongs_together_is_left_in_peace(environment, world_size):
    launch_environment.check_world_size(environment, world_size)


@pytest.mark.parametrize(
    ("environment", "world_size", "said"),
    [
        ({"WORLD_SIZE": "2"}, 1, "launcher started 2 processes, but they are not connected"),
        (STEP, 1, "Slurm has 2 tasks here, and each believes to be alone, as one of 1 process"),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, 1, "Slurm has 2 tasks here"),
        (ACCELERATE | STEP, 1, "Slurm has 2 tasks here"),
        (STEP | {"WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "1"}, 8, "each believes to be alone, as one of 8 process"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, 1, "MPI started 4 processes, but each believes to be alone"),
        ({"PMI_SIZE": "3"}, 1, "MPI started 3 processes"),
        (ACCELERATE | {"MASTER_ADDR": "127.0.0.1"}, 1, "was asked for several processes and started one"),
    ],
)
def test_strangers_are_refused_with_a_line_that_works(environment, world_size, said):
    message = refusal(launch_environment.check_world_size, environment, world_size)
    assert said in message
    assert lines_that_work(message) or "sbatch accelerate_configs/slurm.sh" in message


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ACCELERATE_USE_FSDP", "true", "asks for FSDP"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "asks for DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "True", "asks for Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "asks for a parallelism_config"),
        ("PJRT_DEVICE", "TPU", "asks for a TPU"),
    ],
)
def test_machinery_that_there_is_nothing_for_is_refused(monkeypatch, name, value, said):
    monkeypatch.setenv(name, value)
    message = refusal(Runtime, "fp32", 1)
    assert said in message
    assert "two networks" in message
    assert lines_that_work(message)


@pytest.mark.parametrize("value", ["false", "", "0"])
def test_machinery_that_is_switched_off_is_no_reason(value):
    launch_environment.check_no_fsdp_or_deepspeed({"ACCELERATE_USE_FSDP": value, "PJRT_DEVICE": "CPU"})


@pytest.mark.parametrize(
    ("gpus", "machines", "works"),
    [
        (1, 1, "single_gpu.yaml -m"),
        (4, 1, "multi_gpu.yaml --num_processes 4 -m"),
        (4, 2, "multi_node.yaml --num_machines 2 --num_processes 8 -m"),
    ],
)
def test_more_processes_than_gpus_are_refused(gpus, machines, works):
    environment = TORCHRUN | {"GROUP_WORLD_SIZE": str(machines)}
    message = refusal(launch_environment.check_gpu_count, environment, gpus)
    assert f"started 8 processes on this machine, which has {gpus} GPU(s)" in message
    (line,) = lines_that_work(message)
    assert works in line


def test_a_gpu_for_each_is_enough():
    launch_environment.check_gpu_count(TORCHRUN, 8)
    launch_environment.check_gpu_count({}, 1)


def test_cpu_that_the_launcher_asks_for_is_taken_although_there_is_a_gpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    runtime = Runtime("auto", 1)
    assert (runtime.device.type, runtime.precision) == ("cpu", "fp32")
