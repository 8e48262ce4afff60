"""Optimisers, and the learning rate as a pure function of the update."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vits_trainer.config.train import TrainConfig

AVERAGED_UPDATES = "averaged_updates"
"""Beside the averages of a checkpoint: how many updates are in them."""


def build_optimizer(parameters: Iterable[nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW as VITS has it (betas 0.8 and 0.99, epsilon 1e-9), over the parameters that are trained.

    Fused, as only that one leaves out a step by a verdict on the device (see :meth:`NetworkOptimizer.step`).
    """
    return torch.optim.AdamW(
        [parameter for parameter in parameters if parameter.requires_grad],
        lr=config.learning_rate,
        betas=config.adam_betas,
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate_at(config: TrainConfig, epoch: int, update: int, total_updates: int) -> float:
    """The learning rate of one update.

    Args:
        config: the schedule, and how long the rate rises at first.
        epoch: of the update, from 0.
        update: from 0.
        total_updates: of the run: where the cosine comes to 0.
    """
    rate = config.learning_rate
    if config.schedule == "exponential":
        rate *= config.learning_rate_decay**epoch
    elif config.schedule == "cosine":
        falling = max(1, total_updates - config.warmup_updates)
        rate *= (1 + math.cos(math.pi * min(1.0, max(0, update - config.warmup_updates) / falling))) / 2
    return rate * (update + 1) / config.warmup_updates if update < config.warmup_updates else rate


class Ema:
    """An exponential moving average of a network's trained parameters (Polyak & Juditsky 1992), on their device.

    ``average += (1 - decay) * (weight - average)`` after each update that reached the weights. The decay grows
    as ``(1 + n) / (10 + n)`` with the number ``n`` of updates averaged, from 2/11 up to its full height: a short run's
    average would else be little but the weights that it began with.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.weights: dict[str, Tensor] = {}
        """Averages under the parameters' names."""
        self.restart()

    @torch.no_grad()
    def restart(self) -> None:
        """From the weights as they are now."""
        self.weights = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._updates = torch.zeros((), dtype=torch.float64, device=next(iter(self.weights.values())).device)

    @torch.no_grad()
    def update(self, reached: Tensor) -> None:
        """Takes the weights in, where ``reached``, a 0-dimensional truth on their device, says that they moved."""
        counted = reached.to(self._updates.dtype)
        self._updates += counted
        share = counted * (1 - ((1 + self._updates) / (10 + self._updates)).clamp(max=self.decay))
        averages = list(self.weights.values())
        steps = torch._foreach_sub(list(self._parameters.values()), averages)
        torch._foreach_mul_(steps, share.to(steps[0].dtype))
        torch._foreach_add_(averages, steps)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside, the network has the averaged weights; then its own again, to the bit."""
        own = [p.detach().clone() for p in self._parameters.values()]
        self.copy_to_network()
        try:
            yield
        finally:
            self._put(own)

    def copy_to_network(self) -> None:
        """Gives the network the averaged weights, for good."""
        self._put(list(self.weights.values()))

    def state_dict(self) -> dict[str, Tensor]:
        """The averages under the parameters' names, and how many updates are in them, as a checkpoint has them."""
        return {**self.weights, AVERAGED_UPDATES: self._updates}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes what :meth:`state_dict` gave; raises KeyError for a parameter that it lacks."""
        for name, average in self.weights.items():
            average.copy_(tensors[name])
        self._updates.copy_(tensors[AVERAGED_UPDATES])

    @torch.no_grad()
    def _put(self, weights: list[Tensor]) -> None:
        torch._foreach_copy_(list(self._parameters.values()), weights)


@dataclass
class NetworkOptimizer:
    """One of the two networks, as it is trained: its parameters, its optimiser, its gradient scaler."""

    name: str
    network: nn.Module
    """As wrapped for several processes."""
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    max_grad_norm: float
    """0: the gradient's norm is only measured."""
    ema: Ema | None = None
    """Of its weights, where one is kept."""

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of ``loss`` to what has been accumulated.

        A loss that is no finite number makes its gradient NaN, whatever it would have been: where the ranks' gradients
        meet, all of them learn of it without another exchange.
        """
        self.scaler.scale(loss * (1 + 0 * loss.detach())).backward()  # type: ignore[no-untyped-call]

    def step(self, learning_rate: float) -> Tensor:
        """Moves the weights along the accumulated gradient, forgets it, and returns its norm before clipping.

        Where the norm is no finite number, weights and moments stay as they are. The host need not know: the verdict
        remains on the device.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.scaler.unscale_(self.optimizer)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.max_grad_norm or float("inf"))
        if not self.scaler.is_enabled():  # the scaler tells the optimiser by itself
            self.optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(torch.isfinite(norm))
        return norm

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Inside, the network has its averaged weights, where it keeps any: the voice as it would be exported."""
        with self.ema.swapped_in() if self.ema else nullcontext():
            yield
