"""Updates as CUDA graphs: the host launches one graph instead of thousands of operations."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from vits_trainer.data.dataset import Batch
from vits_trainer.training.objective import LossDenominators
from vits_trainer.training.train_step import GanTrainStep
from vits_trainer.utils.errors import ConfigError

MAX_GRAPHS = 128
"""Shapes of batches that are captured; updates of further shapes run operation by operation."""

Update = Callable[[], dict[str, Tensor]]
"""Runs an update on tensors that stay in place, and returns its values."""


class CudaGraphs:
    """Captures updates as CUDA graphs that share their memory: only one of them runs at a time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, update: Update) -> Update:
        """Captures ``update``, without executing it; the result replays it.

        Raises:
            ConfigError: it contains an operation that cannot be captured.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                values = update()
        except RuntimeError as error:
            raise ConfigError(
                f"--cuda_graphs: an update cannot be captured ({' '.join(str(error).split())[:200]}). Without gcc the "
                "alignment search runs on the CPU, which no graph can contain. Install it, or omit --cuda_graphs."
            ) from error
        self._pool = graph.pool()

        def replay() -> dict[str, Tensor]:
            graph.replay()
            return values

        return replay


class GraphedTrainStep:
    """Calls a :class:`GanTrainStep`, at the second batch of a shape by a graph that it captures.

    The first batch of a shape compiles kernels, which cannot be captured. Whatever differs between updates is copied
    to tensors that stay in place: the batch, the denominators and the learning rate. Noise differs, too: graphs use
    the random generator as it is at each replay.
    """

    def __init__(self, train_step: GanTrainStep, capture: Callable[[Update], Update]) -> None:
        """Args:
        train_step: of one process, whose optimizers are on its device.
        capture: :class:`CudaGraphs`.
        """
        self.train_step = train_step
        self._capture = capture
        device = train_step.runtime.device
        self._learning_rate = torch.zeros((), device=device)
        self._denominators = torch.ones(len(LossDenominators._fields), device=device).unbind()
        self._seen: set[object] = set()
        self._captured: dict[object, tuple[Batch, Update]] = {}
        for optimizer in train_step.optimizers:
            for group in optimizer.optimizer.param_groups:
                group["capturable"] = device.type == "cuda"

    def __call__(
        self,
        batch: Batch,
        denominators: LossDenominators,
        discriminator_only: bool,
        sync_gradients: bool,
        learning_rate: float | None,
    ) -> dict[str, Tensor]:
        """Arguments and result of :meth:`GanTrainStep.__call__`."""
        if learning_rate is None or not batch.clip_ids:
            return self.train_step(batch, denominators, discriminator_only, sync_gradients, learning_rate)
        self._learning_rate.fill_(learning_rate)
        for place, value in zip(self._denominators, denominators, strict=True):
            place.fill_(value)
        batch = batch.to(self.train_step.runtime.device)
        shape = (discriminator_only, *((name, tensor.shape) for name, tensor in _tensors(batch).items()))
        if shape not in self._captured and (shape not in self._seen or len(self._captured) == MAX_GRAPHS):
            self._seen.add(shape)
            return self._run(batch, discriminator_only, sync_gradients)
        if shape not in self._captured:
            with self.train_step.compute_timer.interrupted():
                update = self._capture(lambda: self._run(batch, discriminator_only, sync_gradients))
            self._captured[shape] = batch, update
        place_of_batch, replay = self._captured[shape]
        for name, tensor in _tensors(place_of_batch).items():
            tensor.copy_(_tensors(batch)[name])
        values = replay()
        # The next replay overwrites them.
        return dict(zip(values, torch.stack([value.detach() for value in values.values()]).unbind(), strict=True))

    def _run(self, batch: Batch, discriminator_only: bool, sync_gradients: bool) -> dict[str, Tensor]:
        denominators = LossDenominators(*self._denominators)  # type: ignore[arg-type]
        return self.train_step(batch, denominators, discriminator_only, sync_gradients, self._learning_rate)


def _tensors(batch: Batch) -> dict[str, Tensor]:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}
