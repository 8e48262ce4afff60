"""What the launcher has left in the environment: how many processes it started, and what it takes them for.

Launchers that start too few processes, or some that know nothing of one another, do so without a word (Accelerate
1.15). Each of them would train by itself, and all would write to the same place.
"""

from collections.abc import Mapping

from vits_trainer.utils.errors import ConfigError

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
    """The line that starts ``count`` processes on this machine."""
    line = f"{_LAUNCH.format('multi_gpu.yaml')} --num_processes {count} {_TARGET}"
    return f"Start with {line}, or cpu_2proc.yaml without a GPU."


def asks_for_cpu(environment: Mapping[str, str]) -> bool:
    """Whether the launcher, or whoever called it, wants the CPU although there may be a GPU."""
    return _is_true(environment, "ACCELERATE_USE_CPU")


def check_no_fsdp_or_deepspeed(environment: Mapping[str, str]) -> None:
    """Refuses what this trainer cannot be run by.

    Raises:
        ConfigError: for FSDP, DeepSpeed, Megatron-LM, a parallelism_config and TPUs.
    """
    for name, spoken in _SHARDING.items():
        if _is_true(environment, name):
            raise ConfigError(
                f"The launcher asks for {spoken} ({name}), which this trainer does not have: a voice is two networks "
                "with two optimisers, 83 M parameters together: nothing to shard, as each GPU holds all of it. "
                f"{how_to_launch()}"
            )
    if environment.get("PJRT_DEVICE") == "TPU" or "XRT_TPU_CONFIG" in environment:
        raise ConfigError(
            "The launcher asks for a TPU (PJRT_DEVICE or XRT_TPU_CONFIG), which this trainer does not have: plain "
            "PyTorch steps its two networks and optimisers. Use GPUs; or the CPU, with neither variable set: "
            f"{_LAUNCH.format('cpu.yaml')} {_TARGET}"
        )


def check_gpu_count(environment: Mapping[str, str], gpus: int) -> None:
    """Refuses more processes than this machine has GPUs.

    Args:
        environment: of this process.
        gpus: that this machine has.

    Raises:
        ConfigError: some would have none.
    """
    here = _number(environment, "LOCAL_WORLD_SIZE")
    if here <= gpus:
        return
    machines = _number(environment, "GROUP_WORLD_SIZE")
    if machines > 1:
        works = f"{_LAUNCH.format('multi_node.yaml')} --num_machines {machines} --num_processes {gpus * machines}"
    elif gpus > 1:
        works = f"{_LAUNCH.format('multi_gpu.yaml')} --num_processes {gpus}"
    else:
        works = _LAUNCH.format("single_gpu.yaml")
    raise ConfigError(
        f"The launcher started {here} processes on this machine, which has {gpus} GPU(s). Start with {works} {_TARGET} "
        "(--num_processes counts those of all machines); or, for the CPU, put ACCELERATE_USE_CPU=true before your line."
    )


def check_world_size(environment: Mapping[str, str], world_size: int) -> None:
    """Refuses to be one of several processes that do not know of one another, or the only one of those asked for.

    Args:
        environment: of this process, once the processes have met.
        world_size: how many have met.

    Raises:
        ConfigError: more were started or asked for.
    """
    started = _number(environment, "WORLD_SIZE")
    if world_size != started:
        raise ConfigError(
            f"The launcher started {started} processes, but they are not connected: each believes to be one of "
            f"{world_size}. {how_to_launch(max(started, 2))}"
        )
    _refuse_lone_tasks(environment, world_size)
    mpi_size = max(_number(environment, name) for name in _MPI_SIZES)
    if world_size == 1 and mpi_size > 1:
        raise ConfigError(f"MPI started {mpi_size} processes, but each believes to be alone. {how_to_launch(mpi_size)}")
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in environment and "WORLD_SIZE" not in environment
    if by_accelerate and "MASTER_ADDR" in environment:
        raise ConfigError(
            "accelerate launch was asked for several processes and started one, as it does with --cpu and with "
            f"distributed_type MULTI_CPU or 'NO'. This starts two: {_LAUNCH.format('cpu_2proc.yaml')} {_TARGET} "
            "(on GPUs: multi_gpu.yaml). If one is what you want: unset MASTER_ADDR, and --num_processes 1."
        )


def _refuse_lone_tasks(environment: Mapping[str, str], world_size: int) -> None:
    """Slurm starts a step's command once a task; a launcher among them should know of all tasks."""
    if "SLURM_PROCID" not in environment:  # a shell, in which srun has not been called
        return
    in_step = _number(environment, "SLURM_STEP_NUM_TASKS")
    # A launcher's own processes are no tasks; within a batch script, it may count them as it likes.
    launchers = _number(environment, "GROUP_WORLD_SIZE")
    if world_size > 1 and not ("GROUP_WORLD_SIZE" in environment and in_step > launchers):
        return
    tasks = in_step if "SLURM_STEP_NUM_TASKS" in environment else _number(environment, "SLURM_NTASKS")
    if tasks > 1:
        raise ConfigError(
            f"Slurm has {tasks} tasks here, and each believes to be alone, as one of {world_size} process(es). One "
            "task a machine, each with a launcher that knows of all: sbatch accelerate_configs/slurm.sh (for a single "
            "process: srun --ntasks=1)."
        )


def _is_true(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").lower() in _TRUE


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    return int(value) if value.isdecimal() else 1
