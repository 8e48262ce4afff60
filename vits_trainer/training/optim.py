"""Optimizers, EMA of the weights, and the learning rate as a pure function of the update."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vits_trainer.config.train import TrainConfig

AVERAGED_UPDATES = "averaged_updates"
"""Key of a checkpoint's averages: the number of updates in them."""


class _AdamW(torch.optim.AdamW):
    """AdamW that opens no CUDA context for parameters on the CPU: torch's own check for graph capture does (2.14)."""

    def _accelerator_graph_capture_health_check(self) -> None:
        if any(parameter.device.type != "cpu" for group in self.param_groups for parameter in group["params"]):
            super()._accelerator_graph_capture_health_check()


def build_optimizer(
    parameters: Iterable[nn.Parameter], config: TrainConfig, betas: tuple[float, float] | None = None
) -> torch.optim.AdamW:
    """Returns the AdamW of VITS (betas 0.8 and 0.99, epsilon 1e-9) over the trainable parameters.

    Fused, as only the fused one skips a step by a flag on the device (see :meth:`NetworkOptimizer.step`).
    """
    return _AdamW(
        [parameter for parameter in parameters if parameter.requires_grad],
        lr=config.learning_rate,
        betas=betas or config.adam_betas,
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate_at(config: TrainConfig, epoch: int, update: int, total_updates: int) -> float:
    """Returns the learning rate of one update.

    Args:
        config: the schedule and its warm-up.
        epoch: of the update, from 0.
        update: from 0.
        total_updates: of the run, where the cosine schedule reaches 0.
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

    ``average += (1 - decay) * (weight - average)`` after each update that reached the weights. The decay grows as
    ``(1 + n) / (10 + n)`` with the number ``n`` of averaged updates, from 2/11 to ``decay``: otherwise the average of a
    short run would be mostly its initial weights.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.weights: dict[str, Tensor] = {}
        """Averages under the parameters' names."""
        self.restart()

    @torch.no_grad()
    def restart(self) -> None:
        """Restarts the average at the current weights."""
        self.weights = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._updates = torch.zeros((), dtype=torch.float64, device=next(iter(self.weights.values())).device)

    @torch.no_grad()
    def update(self, reached: Tensor) -> None:
        """Adds the current weights if ``reached``, () bool on their device, is true."""
        counted = reached.to(self._updates.dtype)
        self._updates += counted
        share = counted * (1 - ((1 + self._updates) / (10 + self._updates)).clamp(max=self.decay))
        averages = list(self.weights.values())
        steps = torch._foreach_sub(list(self._parameters.values()), averages)
        torch._foreach_mul_(steps, share.to(steps[0].dtype))
        torch._foreach_add_(averages, steps)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside, the network has the averaged weights; afterwards its own again, bit for bit."""
        own = [p.detach().clone() for p in self._parameters.values()]
        self.copy_to_network()
        try:
            yield
        finally:
            self._put(own)

    def copy_to_network(self) -> None:
        """Copies the averaged weights into the network."""
        self._put(list(self.weights.values()))

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the averages by parameter name, and the number of averaged updates."""
        return {**self.weights, AVERAGED_UPDATES: self._updates}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores :meth:`state_dict`; raises KeyError for a missing parameter."""
        for name, average in self.weights.items():
            average.copy_(tensors[name])
        self._updates.copy_(tensors[AVERAGED_UPDATES])

    @torch.no_grad()
    def _put(self, weights: list[Tensor]) -> None:
        torch._foreach_copy_(list(self._parameters.values()), weights)


@dataclass
class NetworkOptimizer:
    """One of the two networks with its optimizer and gradient scaler.

    Each network has its own scaler (fp16): Accelerate's single one would lower both scales if one network overflows,
    and would be updated twice per update.
    """

    name: str
    network: nn.Module
    """As returned by :meth:`Runtime.prepare_model`."""
    optimizer: torch.optim.AdamW
    """Not prepared by Accelerate: masking a step needs ``found_inf`` on the fused AdamW itself."""
    accelerator: Accelerator
    scaler: torch.amp.GradScaler
    max_grad_norm: float
    """0: the norm is only measured."""
    ema: Ema | None = None
    learning_rate_factor: float = 1.0
    """Learning rate of this network, relative to that of the schedule."""

    def backward(self, loss: Tensor) -> None:
        """Accumulates the gradient of ``loss``.

        A NaN or Inf loss makes the whole gradient NaN: averaging the gradients then informs all ranks without another
        collective.
        """
        self.accelerator.backward(self.scaler.scale(loss * (1 + 0 * loss.detach())))

    def step(self, learning_rate: float | Tensor) -> Tensor:
        """Unscales and clips the gradient, steps AdamW and zeroes the gradient; returns the norm before clipping.

        If the norm is NaN or Inf, weights and moments stay unchanged; the flag stays on the device, so that the host
        does not wait.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * self.learning_rate_factor
        self.scaler.unscale_(self.optimizer)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norm: Tensor = self.accelerator.clip_grad_norm_(parameters, self.max_grad_norm or float("inf"))
        if not self.scaler.is_enabled():  # an enabled scaler sets it
            self.optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(torch.isfinite(norm))
        return norm

    def rehearse_step(self) -> None:
        """Steps without an effect, but with the memory of a step: AdamW's moments, and the copy that the EMA makes."""
        device = self.optimizer.param_groups[0]["params"][0].device
        self.optimizer.found_inf = torch.ones((), device=device)  # type: ignore[attr-defined]
        self.optimizer.step()
        del self.optimizer.found_inf  # type: ignore[attr-defined]
        if self.ema is not None:
            self.ema.update(torch.zeros((), dtype=torch.bool, device=device))

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Inside, the network has its averaged weights, if it keeps any: the voice as it would be exported."""
        with self.ema.swapped_in() if self.ema else nullcontext():
            yield
