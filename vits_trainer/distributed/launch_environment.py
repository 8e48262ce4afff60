"""Checks of the launcher's environment variables: number of processes, and unsupported backends.

Launchers can start too few processes, or unconnected ones, without an error (Accelerate 1.15). Each process would then
train separately, and all would write to the same directories.
"""

from collections.abc import Mapping

from vits_trainer.utils.errors import ConfigError
from vits_trainer.utils.strings import counted

_TARGET = "-m vits_trainer train_vits ..."
_LAUNCH = "accelerate launch --config_file accelerate_configs/{}"
_SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}
_TRUE = ("1", "true", "yes", "on", "y", "t")
_MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def how_to_launch(count: int = 2) -> str:
    """Returns the command that starts ``count`` processes on this machine."""
    line = f"{_LAUNCH.format('multi_gpu.yaml')} --num_processes {count} {_TARGET}"
    return f"Start with {line}, or cpu_2proc.yaml without a GPU."


def selects_cpu(environment: Mapping[str, str]) -> bool:
    """Returns whether the launcher or the environment selects the CPU, even if there is a GPU."""
    return _is_true(environment, "ACCELERATE_USE_CPU")


def uses_gpu(environment: Mapping[str, str]) -> bool:
    """Returns whether this process uses a GPU: there is one, and ACCELERATE_USE_CPU is not set."""
    import torch  # noqa: PLC0415 - takes seconds

    return not selects_cpu(environment) and torch.cuda.is_available()


def check_no_fsdp_or_deepspeed(environment: Mapping[str, str]) -> None:
    """Checks that the launcher selects no unsupported backend.

    Raises:
        ConfigError: for FSDP, DeepSpeed, Megatron-LM, a parallelism_config and TPUs.
    """
    for name, backend in _SHARDING.items():
        if _is_true(environment, name):
            raise ConfigError(
                f"The launcher asks for {backend} ({name}), which is not supported: a voice is two networks with two "
                f"optimizers, 83 M parameters in total, which fit on every GPU. {how_to_launch()}"
            )
    if environment.get("PJRT_DEVICE") == "TPU" or "XRT_TPU_CONFIG" in environment:
        raise ConfigError(
            "The launcher asks for a TPU (PJRT_DEVICE or XRT_TPU_CONFIG), which is not supported: the two networks are "
            "trained with plain PyTorch optimizers. Use GPUs; or the CPU, with neither variable set: "
            f"{_LAUNCH.format('cpu.yaml')} {_TARGET}"
        )


def check_gpu_count(environment: Mapping[str, str], gpus: int) -> None:
    """Checks that this machine has a GPU for each of its processes.

    Args:
        environment: of this process.
        gpus: number of GPUs of this machine.

    Raises:
        ConfigError: there are more processes than GPUs.
    """
    here = _number(environment, "LOCAL_WORLD_SIZE")
    if here <= gpus:
        return
    machines = _number(environment, "GROUP_WORLD_SIZE")
    if machines > 1:
        command = f"{_LAUNCH.format('multi_node.yaml')} --num_machines {machines} --num_processes {gpus * machines}"
    elif gpus > 1:
        command = f"{_LAUNCH.format('multi_gpu.yaml')} --num_processes {gpus}"
    else:
        command = _LAUNCH.format("single_gpu.yaml")
    raise ConfigError(
        f"The launcher started {here} processes on this machine, which has {counted(gpus, 'GPU')}. Start with "
        f"{command} {_TARGET} (--num_processes counts those of all machines); or, for the CPU, put "
        "ACCELERATE_USE_CPU=true before your command."
    )


def check_world_size(environment: Mapping[str, str], world_size: int) -> None:
    """Checks that the process group has all processes that were started or requested.

    Args:
        environment: of this process, after the process group is initialized.
        world_size: of the process group.

    Raises:
        ConfigError: more processes were started or requested.
    """
    started = _number(environment, "WORLD_SIZE")
    if world_size != started:
        raise ConfigError(
            f"The launcher started {started} processes, but they are not connected: each has a world size of "
            f"{world_size}. {how_to_launch(max(started, 2))}"
        )
    _check_slurm_tasks(environment, world_size)
    mpi_size = max(_number(environment, name) for name in _MPI_SIZES)
    if world_size == 1 and mpi_size > 1:
        raise ConfigError(f"MPI started {mpi_size} processes, but they are not connected. {how_to_launch(mpi_size)}")
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in environment and "WORLD_SIZE" not in environment
    if by_accelerate and "MASTER_ADDR" in environment:
        raise ConfigError(
            "accelerate launch was asked for several processes and started one, as it does with --cpu and with "
            f"distributed_type MULTI_CPU or 'NO'. This starts two: {_LAUNCH.format('cpu_2proc.yaml')} {_TARGET} "
            "(on GPUs: multi_gpu.yaml). For one process, unset MASTER_ADDR and set --num_processes 1."
        )


def _check_slurm_tasks(environment: Mapping[str, str], world_size: int) -> None:
    """Slurm runs a step's command once per task; raises ConfigError unless the process group spans all tasks."""
    if "SLURM_PROCID" not in environment:  # a shell without srun
        return
    in_step = _number(environment, "SLURM_STEP_NUM_TASKS")
    # The processes of a launcher are not tasks; in a batch script, their number is independent of the tasks.
    launchers = _number(environment, "GROUP_WORLD_SIZE")
    if world_size > 1 and not ("GROUP_WORLD_SIZE" in environment and in_step > launchers):
        return
    tasks = in_step if "SLURM_STEP_NUM_TASKS" in environment else _number(environment, "SLURM_NTASKS")
    if tasks > 1:
        raise ConfigError(
            f"Slurm started {tasks} tasks that are not connected: each has a world size of {world_size}. Start one "
            "task per machine, each with a launcher that connects them: sbatch accelerate_configs/slurm.sh (for a "
            "single process: srun --ntasks=1)."
        )


def _is_true(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").lower() in _TRUE


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    return int(value) if value.isdecimal() else 1
