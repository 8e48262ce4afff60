"""The machine: processes, device, precision. The only place that builds an ``Accelerator``.

Accelerate brings launching, process groups, devices and DistributedDataParallel. Accumulation, precision, gradient
scaling and schedules stay ours, as it would count the steps of two networks wrongly, share one gradient scaler between
them and step schedules once a process.
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

logger = logging.getLogger("vits_trainer")

Value = TypeVar("Value")

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Runtime:
    """This process among the others, its device and its precision. Building it runs on every rank."""

    def __init__(
        self,
        precision: Precision,
        accumulation: int,
        deterministic: bool = False,
        timeout_s: float = 600,
        device: Literal["auto", "cpu", "cuda"] = "auto",
    ) -> None:
        """Args:
        precision: to compute in.
        accumulation: micro-batches in an update; a launcher that says otherwise is an error.
        deterministic: kernels that repeat their results.
        timeout_s: how long the ranks wait for one another.
        device: auto takes the GPU where there is one.

        Raises:
            ConfigError: the machine or its launcher cannot do what is asked for.
        """
        timeout = timedelta(seconds=timeout_s)
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.backends.cudnn.benchmark = False
        # The relative embeddings' gradients have one dimension of size 1, whose stride costs nothing.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        launch_environment.check_no_fsdp_or_deepspeed(os.environ)
        on_gpu = device != "cpu" and not launch_environment.asks_for_cpu(os.environ) and torch.cuda.is_available()
        if device == "cuda" and not on_gpu:
            raise ConfigError("--device cuda, and there is no GPU here. Use --device cpu, or leave it at auto.")
        if on_gpu:
            launch_environment.check_gpu_count(os.environ, torch.cuda.device_count())
        self.precision = resolve_precision(precision, on_gpu)
        _refuse_other_accumulation(accumulation)
        if is_restarted() and int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.distributed.is_initialized():
            _init_process_group_after_restart(on_gpu, timeout)
        try:
            self.accelerator = Accelerator(
                cpu=not on_gpu,
                mixed_precision="no",
                # backward() must not divide the loss, whatever a launcher's file says.
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1, sync_with_dataloader=False),
                # Neither network has buffers to broadcast, and no parameter of theirs goes unused. A static graph needs
                # its first backward pass to be a synchronised one (torch 2.14): Trainer.rehearse has it.
                kwargs_handlers=[
                    DistributedDataParallelKwargs(gradient_as_bucket_view=True, static_graph=True),
                    InitProcessGroupKwargs(timeout=timeout),
                ],
            )
        except (ValueError, torch.distributed.DistError) as error:
            raise ConfigError(
                f"The processes that the launcher speaks of cannot meet ({error}). {launch_environment.how_to_launch()}"
            ) from error
        launch_environment.check_world_size(os.environ, self.world_size)
        # What ranks agree upon must not wait for the device, which is busy with the last update: a group of its own.
        self._host_group: Any = None
        self._signs: RankHeartbeats | None = None
        if self.world_size > 1:
            self._host_group = torch.distributed.new_group(backend="gloo", timeout=timeout)
            store = PrefixStore("signs", _get_default_store())
            self._signs = RankHeartbeats(store, self.rank, self.world_size, timeout_s)

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return int(self.accelerator.process_index)

    @property
    def local_rank(self) -> int:
        """Number of this process among those of its machine, from 0."""
        return int(self.accelerator.local_process_index)

    @property
    def device_name(self) -> str:
        """The GPU's model, or CPU."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return int(self.accelerator.num_processes)

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def prepare_model(self, network: nn.Module) -> nn.Module:
        """Moves a network to the device and joins it with its copies on the other ranks. Runs on every rank."""
        wrapped: nn.Module = self.accelerator.prepare_model(network)
        return wrapped

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """The forward pass in the run's precision; losses, STFT and alignment keep float32 inside of it."""
        dtype = _DTYPES.get(self.precision)
        with torch.autocast(self.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            yield

    def reseed(self, *numbers: int) -> None:
        """Makes what is drawn from now on a pure function of ``numbers`` and the rank: nothing of it need be saved."""
        seed_all(*numbers, self.rank)

    def gradient_scaler(self) -> torch.amp.GradScaler:
        """A scaler of one network's own, so that one network's overflow leaves the other's scale alone (fp16 only)."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    @contextmanager
    def accumulate(self, *networks: nn.Module, sync_gradients: bool) -> Iterator[None]:
        """Ranks exchange gradients inside only if ``sync_gradients``: at the last micro-batch of an update."""
        with ExitStack() as stack:
            if not sync_gradients:
                for network in networks:
                    stack.enter_context(self.accelerator.no_sync(network))
            yield

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Adds up ``values`` over the ranks, on the CPU. Runs on every rank."""
        total = values.detach().cpu().clone()
        if self._host_group is not None:
            with self._exchange():
                torch.distributed.all_reduce(total, group=self._host_group)
        return total

    def on_main_then_broadcast(self, make: Callable[[], Value]) -> Value:
        """What ``make`` gives on the main rank, a small picklable value, on every rank. Runs on every rank.

        Raises:
            VitsTrainerError: the error of the main rank, on every rank.
            OtherRankError: on the other ranks, where the main rank's error is of another kind.
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
        """Inside, the main rank has entered what ``make`` gives: a claim, say. Runs on every rank.

        Raises:
            VitsTrainerError: as :meth:`on_main_then_broadcast` does, on every rank, where it cannot be entered.
        """
        with ExitStack() as stack:

            def enter() -> None:
                stack.enter_context(make())

            self.on_main_then_broadcast(enter)
            yield

    def all_gather_object(self, item: Value) -> list[Value]:
        """Each rank's ``item``, a small picklable value, on every rank. Runs on every rank."""
        if self._host_group is None:
            return [item]
        items: list[Any] = [None] * self.world_size
        with self._exchange():
            torch.distributed.all_gather_object(items, item, group=self._host_group)
        return items

    @contextmanager
    def report_failure_to_peers(self) -> Iterator[None]:
        """An error inside is left where the other ranks find it, when they lose this one."""
        try:
            yield
        except UnequalRanksError:
            # All ranks raise it alike. Ending with gloo's threads at work aborted 2 of 50 processes (torch 2.14).
            self.close()
            raise
        except BaseException as error:
            # What another rank's failure has caused names that one already.
            if self._signs is not None and not isinstance(error, OtherRankError):
                self._signs.report_failure(f"{type(error).__name__}: {error}")
            raise

    def explain_collective_error(self, error: RuntimeError) -> OtherRankError | None:
        """What an error of an exchange between ranks means: who is missing. None if it is an error of another kind."""
        if self._signs is None or not (isinstance(error, torch.distributed.DistError) or "gloo" in str(error)):
            return None
        return OtherRankError(f"{self._signs.describe_missing_ranks()} ({' '.join(str(error).split())[:200]})")

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        if self._signs is not None:
            self._signs.beat()
        try:
            yield
        except RuntimeError as error:
            lost = self.explain_collective_error(error)
            if lost is None:
                raise
            raise lost from error

    def _from_main(self, box: list[Any]) -> None:
        with self._exchange():
            torch.distributed.broadcast_object_list(box, src=0, group=self._host_group)

    def close(self) -> None:
        """Leaves the process group, once all is done. Runs on every rank."""
        self.accelerator.end_training()
        # With its last reference gloo's threads are joined. One that still held tensors of the last exchange when the
        # interpreter ends would abort the process, now and then, after all was done (torch 2.14).
        self._host_group = None

    @property
    def chooses_threads(self) -> bool:
        """Whether the number of CPU threads is open: one process on the CPU, and no ``OMP_NUM_THREADS``."""
        is_open = self.device.type == "cpu" and self.world_size == 1 and cpu_threads.NUMBER not in os.environ
        return is_open and torch.get_num_threads() > 1

    def choose_threads(self, work: Callable[[], float]) -> float:
        """Computes with one CPU thread or with all from now on, whichever does ``work`` faster.

        The sums of a convolution depend on the number, so a resumed run keeps it.

        Args:
            work: to time; returns its seconds.

        Returns:
            Seconds that ``work`` takes with the chosen number.
        """
        times = cpu_threads.time_threads(work, torch.get_num_threads(), torch.set_num_threads)
        self.use_threads(times.fastest)
        logger.info("CPU threads: %d (a micro-batch takes %s)", times.fastest, times)
        if times.is_starved:
            logger.warning("%s", cpu_threads.STARVED_REMEDY)
        return min(times.all_s, times.one_s)

    def use_threads(self, threads: int) -> None:
        """Computes with ``threads`` CPU threads from now on, as do later runs and child processes of this process."""
        os.environ[cpu_threads.NUMBER] = str(threads)
        torch.set_num_threads(threads)

    def describe(self) -> str:
        """One line for people: processes, device, precision."""
        return f"{self.world_size} process(es) on {self.device_name}, {self.precision}"


def seed_all(*numbers: int) -> None:
    """Seeds every generator that training draws from."""
    state = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)  # transformers' layerdrop draws from it
    torch.manual_seed(state)


def _init_process_group_after_restart(on_gpu: bool, timeout: timedelta) -> None:
    """Makes the process group of ranks that a launcher has started again, before Accelerate would. Runs on every rank.

    The launcher's store still holds the addresses of those that died, under the very keys that the new ones would ask
    for (torch 2.14): theirs carry the number of the restart.
    """
    store, rank, world_size = next(rendezvous("env://"))
    own_keys = PrefixStore(f"restart-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    backend = "nccl" if on_gpu else "gloo"
    torch.distributed.init_process_group(backend, timeout=timeout, store=own_keys, rank=rank, world_size=world_size)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether PyTorch says that a GPU's or this machine's memory is used up."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def resolve_precision(asked: Precision, on_gpu: bool) -> Literal["fp32", "bf16", "fp16"]:
    """What to compute in.

    Raises:
        ConfigError: the launcher asks for another precision than the flag, or the device has not the one asked for.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", "bf16", "fp16"):
        raise ConfigError(f"The launcher asks for {launched} precision. Set mixed_precision: 'no' and use --precision.")
    # "no" is also what accelerate launch says when nobody chose anything.
    if launched != "no" and asked not in ("auto", launched):
        raise ConfigError(
            f"--precision {asked}, but the launcher says {launched} (mixed_precision in its file, or "
            "--mixed_precision): leave the launcher's at 'no', as the flag decides."
        )
    if asked == "auto" and launched == "no":
        return "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "fp32"
    precision = launched if asked == "auto" else asked
    if precision == "fp16" and not on_gpu:
        raise ConfigError(
            "fp16 needs a GPU, and there is none here. Use --precision fp32 or bf16, or leave it at auto."
        )
    return precision  # type: ignore[return-value]


def _refuse_other_accumulation(asked: int) -> None:
    launched = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS")
    if launched not in (None, "1", str(asked)):
        raise ConfigError(
            f"The launcher asks for {launched} gradient accumulation steps, --gradient_accumulation_steps is {asked}: "
            "leave it out of the launcher's file, as the flag decides."
        )
