"""Optimisers, and the learning rate as a pure function of the update."""

from collections.abc import Iterable

import torch
from torch import nn

from vits_trainer.config import TrainConfig


def build_optimizer(parameters: Iterable[nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW as VITS has it (betas 0.8 and 0.99, epsilon 1e-9), over the parameters that are trained."""
    return torch.optim.AdamW(
        [parameter for parameter in parameters if parameter.requires_grad],
        lr=config.learning_rate,
        betas=config.adam_betas,
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
    )


def learning_rate(config: TrainConfig, epoch: int) -> float:
    """The learning rate of all updates in ``epoch`` (from 0): exponential decay, once an epoch."""
    return config.learning_rate * config.learning_rate_decay**epoch


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate
