"""Runtime of a process: ranks, device and precision. The only module that builds an ``Accelerator``.

Accelerate provides launching, process groups, devices and DistributedDataParallel. Accumulation, precision, gradient
scaling and schedules are implemented here, because Accelerate would miscount the steps of two networks, share one
gradient scaler between them and step schedules once per process.
"""

import logging
import os
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store
from torch.distributed.rendezvous import rendezvous

from vits_trainer.config.options import Precision
from vits_trainer.distributed import launch_environment
from vits_trainer.distributed.heartbeat import RankHeartbeats
from vits_trainer.distributed.shutdown import is_restarted
from vits_trainer.utils import cpu_threads
from vits_trainer.utils.errors import ConfigError, OtherRankError, UnequalRanksError, VitsTrainerError
from vits_trainer.utils.strings import counted

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Runtime:
    """This process's rank, device and precision, and its collectives. Construction runs on every rank."""

    def __init__(
        self,
        precision: Precision,
        accumulation: int,
        deterministic: bool = False,
        timeout_s: float = 600,
        device: Literal["auto", "cpu", "cuda"] = "auto",
    ) -> None:
        """Args:
        precision: of the computation.
        accumulation: micro-batches per update; a different value from the launcher is an error.
        deterministic: use deterministic kernels.
        timeout_s: timeout of collectives.
        device: auto selects the GPU if there is one.

        Raises:
            ConfigError: the machine or its launcher does not support the arguments.
        """
        timeout = timedelta(seconds=timeout_s)
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.backends.cudnn.benchmark = False
        # The relative embeddings' gradients have a dimension of size 1, whose stride does not matter.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        launch_environment.check_no_fsdp_or_deepspeed(os.environ)
        on_gpu = device != "cpu" and launch_environment.uses_gpu(os.environ)
        # NCCL's collectives do not block the host, and its watchdog aborts the process: the exchange on the host, which
        # starts later and names the missing rank, must end first.
        device_timeout = timeout + timedelta(seconds=60 if on_gpu else 0)
        if device == "cuda" and not on_gpu:
            raise ConfigError("--device cuda: this machine has no GPU. Use --device cpu or auto.")
        if on_gpu:
            launch_environment.check_gpu_count(os.environ, torch.cuda.device_count())
        self.precision = resolve_precision(precision, on_gpu)
        # PyTorch's default is TF32 in convolutions, but not in matrix products.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = self.precision == "tf32"
        _check_accumulation(accumulation)
        if is_restarted() and int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.distributed.is_initialized():
            _init_process_group_after_restart(on_gpu, device_timeout)
        try:
            self.accelerator = Accelerator(
                cpu=not on_gpu,
                mixed_precision="no",
                # backward() must not divide the loss, whatever the launcher's file sets.
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1, sync_with_dataloader=False),
                # Neither network has buffers to broadcast or unused parameters. A static graph requires the first
                # backward pass to synchronize gradients (torch 2.14): Trainer.dry_run does.
                kwargs_handlers=[
                    DistributedDataParallelKwargs(gradient_as_bucket_view=True, static_graph=True),
                    InitProcessGroupKwargs(timeout=device_timeout),
                ],
            )
        except (ValueError, torch.distributed.DistError) as error:
            raise ConfigError(
                f"The launcher's processes cannot connect ({error}). {launch_environment.how_to_launch()}"
            ) from error
        launch_environment.check_world_size(os.environ, self.num_processes)
        # Collectives on host values use a separate group: they must not wait for the device, busy with the last update.
        self._host_group: Any = None
        self._heartbeats: RankHeartbeats | None = None
        if self.num_processes > 1:
            self._host_group = torch.distributed.new_group(backend="gloo", timeout=timeout)
            store = PrefixStore("signs", _get_default_store())
            self._heartbeats = RankHeartbeats(store, self.process_index, self.num_processes, timeout_s)

    @property
    def device(self) -> torch.device:
        """Device of this process."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def process_index(self) -> int:
        """Number of this process, from 0."""
        return int(self.accelerator.process_index)

    @property
    def local_process_index(self) -> int:
        """Number of this process on its machine, from 0."""
        return int(self.accelerator.local_process_index)

    @property
    def device_name(self) -> str:
        """The GPU's model, or CPU."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"

    @property
    def num_processes(self) -> int:
        """Number of processes."""
        return int(self.accelerator.num_processes)

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes files and logs for all."""
        return self.process_index == 0

    def prepare_model(self, network: nn.Module) -> nn.Module:
        """Moves a network to the device and wraps it in DistributedDataParallel. Runs on every rank."""
        wrapped: nn.Module = self.accelerator.prepare_model(network)
        return wrapped

    @property
    def autocasts(self) -> bool:
        """Whether forward passes run in another precision than float32."""
        return self.precision in _DTYPES

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Runs the forward pass in the run's precision; losses, STFT and alignment stay in float32."""
        dtype = _DTYPES.get(self.precision)
        with torch.autocast(self.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            yield

    def reseed(self, *numbers: int) -> None:
        """Seeds all generators from ``numbers`` and the rank alone, so that no generator state has to be saved."""
        seed_all(*numbers, self.process_index)

    def gradient_scaler(self) -> torch.amp.GradScaler:
        """Returns a scaler for one network, so that its overflow does not change the other's scale (fp16 only)."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    @contextmanager
    def accumulate(self, *networks: nn.Module, sync_gradients: bool) -> Iterator[None]:
        """Inside, ranks average gradients only if ``sync_gradients``: at the last micro-batch of an update."""
        with ExitStack() as stack:
            if not sync_gradients:
                for network in networks:
                    stack.enter_context(self.accelerator.no_sync(network))
            yield

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Returns the sum of ``values`` over the ranks, on the CPU. Runs on every rank."""
        total = values.detach().cpu().clone()
        if self._host_group is not None:
            with self._collective():
                torch.distributed.all_reduce(total, group=self._host_group)
        return total

    def on_main_then_broadcast(self, make: Callable[[], Value]) -> Value:
        """Calls ``make`` on the main rank and returns its result on every rank. Runs on every rank.

        Args:
            make: returns a small picklable value.

        Raises:
            VitsTrainerError: the error of the main rank, on every rank.
            OtherRankError: on the other ranks, if the main rank's error is of another type.
        """
        if self._host_group is None:
            return make()
        box: list[Any] = [None, None]
        if self.is_main_process:
            try:
                box[0] = make()
            except Exception as error:
                known = isinstance(error, VitsTrainerError)
                box[1] = error if known else OtherRankError(f"rank 0 failed: {type(error).__name__}: {error}")
                self._from_main(box)
                raise
        self._from_main(box)
        if box[1] is not None:
            raise box[1]
        value: Value = box[0]
        return value

    @contextmanager
    def on_main(self, make: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
        """Enters a context manager on the main rank, for example a file lock. Runs on every rank.

        Raises:
            VitsTrainerError: on every rank, as in :meth:`on_main_then_broadcast`, if entering fails.
        """
        with ExitStack() as stack:

            def enter() -> None:
                stack.enter_context(make())

            self.on_main_then_broadcast(enter)
            yield

    def all_gather_object(self, item: Value) -> list[Value]:
        """Returns each rank's ``item``, a small picklable value, on every rank. Runs on every rank."""
        if self._host_group is None:
            return [item]
        items: list[Any] = [None] * self.num_processes
        with self._collective():
            torch.distributed.all_gather_object(items, item, group=self._host_group)
        return items

    @contextmanager
    def report_failure_to_peers(self) -> Iterator[None]:
        """Publishes an exception raised inside, so that the other ranks can report why this one failed."""
        try:
            yield
        except UnequalRanksError:
            # Raised on all ranks. Exiting while gloo's threads were running aborted 2 of 50 processes (torch 2.14).
            self.close()
            raise
        except BaseException as error:
            # An OtherRankError is caused by another rank, which has published its own failure.
            if self._heartbeats is not None and not isinstance(error, OtherRankError):
                self._heartbeats.report_failure(f"{type(error).__name__}: {error}")
            raise

    def explain_collective_error(self, error: RuntimeError) -> OtherRankError | None:
        """Returns which rank is missing after ``error`` of a collective; None for other errors."""
        if self._heartbeats is None or not (isinstance(error, torch.distributed.DistError) or "gloo" in str(error)):
            return None
        return OtherRankError(f"{self._heartbeats.describe_missing_ranks()} ({' '.join(str(error).split())[:200]})")

    @contextmanager
    def _collective(self) -> Iterator[None]:
        if self._heartbeats is not None:
            self._heartbeats.beat()
        try:
            yield
        except RuntimeError as error:
            explained = self.explain_collective_error(error)
            if explained is None:
                raise
            raise explained from error

    def _from_main(self, box: list[Any]) -> None:
        with self._collective():
            torch.distributed.broadcast_object_list(box, src=0, group=self._host_group)

    def close(self) -> None:
        """Destroys the process group at the end. Runs on every rank."""
        self.accelerator.end_training()
        # Dropping the last reference joins gloo's threads. A thread that still holds tensors of the last collective at
        # interpreter exit occasionally aborts the process (torch 2.14).
        self._host_group = None

    @property
    def chooses_threads(self) -> bool:
        """Whether to choose the number of CPU threads: one process on the CPU, and no ``OMP_NUM_THREADS``."""
        is_free = self.device.type == "cpu" and self.num_processes == 1 and cpu_threads.NUMBER not in os.environ
        return is_free and torch.get_num_threads() > 1

    def choose_threads(self, work: Callable[[], float]) -> float:
        """Sets the number of CPU threads to one or to all, whichever is faster.

        The results of a convolution depend on the number, so a resumed run keeps it.

        Args:
            work: runs a benchmark and returns its seconds.

        Returns:
            Seconds of ``work`` with the chosen number.
        """
        times = cpu_threads.time_threads(work, torch.get_num_threads(), torch.set_num_threads)
        self.use_threads(times.fastest)
        logger.info("CPU threads: %d (a micro-batch takes %s)", times.fastest, times)
        if times.is_starved:
            logger.warning("%s", cpu_threads.STARVED_REMEDY)
        return min(times.all_s, times.one_s)

    def use_threads(self, threads: int) -> None:
        """Sets the number of CPU threads of this process, its later runs and its child processes."""
        os.environ[cpu_threads.NUMBER] = str(threads)
        torch.set_num_threads(threads)

    def describe(self) -> str:
        """Returns one line for the log: processes, device, precision."""
        return f"{counted(self.num_processes, 'process', 'processes')} on {self.device_name}, {self.precision}"


def seed_all(*numbers: int) -> None:
    """Seeds every random generator that training uses."""
    state = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)  # transformers' layerdrop draws from it
    torch.manual_seed(state)


def _init_process_group_after_restart(on_gpu: bool, timeout: timedelta) -> None:
    """Initializes the process group of restarted ranks, before Accelerate does. Runs on every rank.

    The launcher's store still holds the addresses of the dead processes, under the keys that the new ones would read
    (torch 2.14): the new keys are prefixed with the number of the restart.
    """
    store, rank, world_size = next(rendezvous("env://"))
    prefixed = PrefixStore(f"restart-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    backend = "nccl" if on_gpu else "gloo"
    torch.distributed.init_process_group(backend, timeout=timeout, store=prefixed, rank=rank, world_size=world_size)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Returns whether PyTorch ran out of GPU or host memory."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def resolve_precision(requested: Precision, on_gpu: bool) -> Literal["fp32", "tf32", "bf16", "fp16"]:
    """Returns the precision of the computation.

    Raises:
        ConfigError: the launcher sets another precision than the flag, or the device does not support it.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", "bf16", "fp16"):
        raise ConfigError(f"The launcher asks for {launched} precision. Set mixed_precision: 'no' and use --precision.")
    # "no" is also accelerate launch's value if none was chosen.
    if launched != "no" and requested not in ("auto", launched):
        raise ConfigError(
            f"--precision {requested}, but the launcher sets {launched} (mixed_precision in its file, or "
            "--mixed_precision). Set the launcher's to 'no' and use --precision."
        )
    if requested == "auto" and launched == "no":
        # GPUs before Ampere emulate bf16, which is slower than fp32.
        return "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    precision = launched if requested == "auto" else requested
    if precision in ("fp16", "tf32") and not on_gpu:
        raise ConfigError(f"{precision} needs a GPU, and this run has none. Use --precision fp32, bf16 or auto.")
    return precision  # type: ignore[return-value]


def _check_accumulation(requested: int) -> None:
    launched = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS")
    if launched not in (None, "1", str(requested)):
        raise ConfigError(
            f"The launcher asks for {launched} gradient accumulation steps, --gradient_accumulation_steps is "
            f"{requested}: remove the setting from the launcher's file and use the flag."
        )
