"""Optimisers, and the learning rate as a pure function of the update."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vits_trainer.config import TrainConfig


def build_optimizer(parameters: Iterable[nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW as VITS has it (betas 0.8 and 0.99, epsilon 1e-9), over the parameters that are trained.

    Fused, as only that one leaves out a step by a verdict on the device (see :meth:`Learner.update`).
    """
    return torch.optim.AdamW(
        [parameter for parameter in parameters if parameter.requires_grad],
        lr=config.learning_rate,
        betas=config.adam_betas,
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(config: TrainConfig, epoch: int) -> float:
    """The learning rate of all updates in ``epoch`` (from 0): exponential decay, once an epoch."""
    return config.learning_rate * config.learning_rate_decay**epoch


@dataclass
class Learner:
    """One of the two networks, as it is trained: its parameters, its optimiser, its gradient scaler."""

    name: str
    network: nn.Module
    """As wrapped for several processes."""
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    max_grad_norm: float
    """0: the gradient's norm is only measured."""

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of ``loss`` to what has been accumulated.

        A loss that is no finite number makes its gradient NaN, whatever it would have been: where the ranks' gradients
        meet, all of them learn of it without another exchange.
        """
        self.scaler.scale(loss * (1 + 0 * loss.detach())).backward()  # type: ignore[no-untyped-call]

    def update(self, rate: float) -> Tensor:
        """Moves the weights along the accumulated gradient, forgets it, and returns its norm before clipping.

        Where the norm is no finite number, weights and moments stay as they are. The host need not know: the verdict
        remains on the device.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.unscale_(self.optimizer)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.max_grad_norm or float("inf"))
        if not self.scaler.is_enabled():  # the scaler tells the optimiser by itself
            self.optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm
