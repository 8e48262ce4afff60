"""Launchers that start too few, too many or unconnected processes are rejected, with a command that works."""

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


def error_of(check, *arguments):
    with pytest.raises(ConfigError) as caught:
        check(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def valid_commands(message):
    """The commands in ``message``; asserts that accelerate launch parses them and that their files exist."""
    commands = re.findall(r"accelerate launch --config_file .*? -m vits_trainer train_vits", message)
    for command in commands:
        arguments = launch_command_parser().parse_args(shlex.split(command)[2:])
        assert (ROOT / arguments.config_file).is_file()
    return commands


@pytest.mark.parametrize(
    ("environment", "world_size"),
    [
        ({}, 1),
        (ACCELERATE, 1),
        (TORCHRUN, 16),
        ({**ACCELERATE, **TORCHRUN, **STEP}, 16),  # slurm.sh: one launcher per task
        ({"SLURM_NTASKS": "8"}, 1),  # the shell of salloc
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, 1),
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, 1),  # srun --ntasks=1 in a larger job
        # A batch script that calls torchrun itself, on one machine.
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "1"}, 8),
        (STEP | {"WORLD_SIZE": "2"}, 2),  # one task per rank
        ({"MASTER_ADDR": "node-a"}, 1),  # exported, without a launcher
        ({"WORLD_SIZE": "2", "OMPI_COMM_WORLD_SIZE": "2"}, 2),
    ],
)
def test_connected_processes_are_accepted(environment, world_size):
    launch_environment.check_world_size(environment, world_size)


@pytest.mark.parametrize(
    ("environment", "world_size", "expected"),
    [
        ({"WORLD_SIZE": "2"}, 1, "launcher started 2 processes, but they are not connected"),
        (STEP, 1, "Slurm started 2 tasks that are not connected: each has a world size of 1"),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, 1, "Slurm started 2 tasks"),
        (ACCELERATE | STEP, 1, "Slurm started 2 tasks"),
        (STEP | {"WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "1"}, 8, "each has a world size of 8"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, 1, "MPI started 4 processes, but they are not connected"),
        ({"PMI_SIZE": "3"}, 1, "MPI started 3 processes"),
        (ACCELERATE | {"MASTER_ADDR": "127.0.0.1"}, 1, "was asked for several processes and started one"),
    ],
)
def test_unconnected_processes_are_rejected_with_a_valid_command(environment, world_size, expected):
    message = error_of(launch_environment.check_world_size, environment, world_size)
    assert expected in message
    assert valid_commands(message) or "sbatch accelerate_configs/slurm.sh" in message


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("ACCELERATE_USE_FSDP", "true", "asks for FSDP"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "asks for DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "True", "asks for Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "asks for a parallelism_config"),
        ("PJRT_DEVICE", "TPU", "asks for a TPU"),
    ],
)
def test_unsupported_backends_are_rejected(monkeypatch, name, value, expected):
    monkeypatch.setenv(name, value)
    message = error_of(Runtime, "fp32", 1)
    assert expected in message
    assert "two networks" in message
    assert valid_commands(message)


@pytest.mark.parametrize("value", ["false", "", "0"])
def test_disabled_backends_are_accepted(value):
    launch_environment.check_no_fsdp_or_deepspeed({"ACCELERATE_USE_FSDP": value, "PJRT_DEVICE": "CPU"})


@pytest.mark.parametrize(
    ("gpus", "machines", "expected"),
    [
        (1, 1, "single_gpu.yaml -m"),
        (4, 1, "multi_gpu.yaml --num_processes 4 -m"),
        (4, 2, "multi_node.yaml --num_machines 2 --num_processes 8 -m"),
    ],
)
def test_more_processes_than_gpus_are_rejected(gpus, machines, expected):
    environment = TORCHRUN | {"GROUP_WORLD_SIZE": str(machines)}
    message = error_of(launch_environment.check_gpu_count, environment, gpus)
    assert f"started 8 processes on this machine, which has {gpus} GPU{'s' * (gpus > 1)}. " in message
    (command,) = valid_commands(message)
    assert expected in command


def test_one_gpu_per_process_is_accepted():
    launch_environment.check_gpu_count(TORCHRUN, 8)
    launch_environment.check_gpu_count({}, 1)


def test_launcher_selects_the_cpu_although_there_is_a_gpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    runtime = Runtime("auto", 1)
    assert (runtime.device.type, runtime.precision) == ("cpu", "fp32")
