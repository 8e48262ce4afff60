"""Counts what an update asks of a CUDA device, by part: launches, host synchronization, peak memory.

``../shared/tools/fakecuda/run.sh python -m experiments.device_operations [--compile true]``

Runs on the stand-in for a device, which executes no kernel: counts and memory are real, values and times are not.
"""

import argparse
import collections
import ctypes
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from vits_trainer.config.tools import BenchmarkConfig
from vits_trainer.diagnostics import benchmark
from vits_trainer.distributed.runtime import Runtime
from vits_trainer.models import alignment
from vits_trainer.models.duration_predictor import duration_loss
from vits_trainer.models.generator import ForwardParts
from vits_trainer.training.optim import NetworkOptimizer

COUNTERS = (
    "launches", "gemms", "convs", "ffts", "h2d", "d2h", "d2d", "memsets", "stream_syncs", "event_syncs", "device_syncs",
    "mallocs", "frees", "event_records", "stream_waits",
)  # fmt: skip
OPERATIONS = ("launches", "gemms", "convs", "ffts", "memsets", "d2d")


def counts() -> dict[str, int]:
    """Returns the counters of the stand-in."""
    values = (ctypes.c_long * len(COUNTERS))()
    ctypes.CDLL(None).fake_counts(values)
    return dict(zip(COUNTERS, values, strict=True))


def operations() -> int:
    counted = counts()
    return sum(counted[name] for name in OPERATIONS)


class Parts:
    """Operations of named calls, without those of nested ones. Backward passes count for the network as a whole."""

    def __init__(self) -> None:
        self.counted: collections.Counter[str] = collections.Counter()
        self._inner: list[int] = []

    def count(self, owner: Any, name: str, part: str) -> None:
        call: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(call)
        def counting(*args: Any, **kwargs: Any) -> Any:
            before = operations()
            self._inner.append(0)
            try:
                return call(*args, **kwargs)
            finally:
                own = operations() - before
                self.counted[part] += own - self._inner.pop()
                if self._inner:
                    self._inner[-1] += own

        setattr(owner, name, counting)


def gradient_of(module: Callable[..., Any], *args: Any) -> int:
    """Returns the operations of the backward pass of ``module(*args)`` alone."""
    outputs = module(*args)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    total = sum(value.float().sum() for value in outputs if value is not None and value.requires_grad)
    before = operations()
    total.backward()  # type: ignore[union-attr]
    return operations() - before


def main(config: BenchmarkConfig) -> None:
    runtime = Runtime(config.precision, 1)
    step, update = benchmark.our_update(config, runtime)
    for _ in range(3):
        update()
    torch.cuda.reset_peak_memory_stats()
    before = counts()
    update()
    after = counts()
    spent = {name: after[name] - before[name] for name in COUNTERS}
    print(f"{sum(spent[name] for name in OPERATIONS)} operations: {spent}")
    print(f"peak {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB allocated")
    if config.compile or config.cuda_graphs:
        return
    parts = Parts()
    network: Any = step.generator_optimizer.network
    by_name = SimpleNamespace(**network.parts._asdict())
    for name in vars(by_name):
        parts.count(by_name, name, name)
    network.parts = ForwardParts(**vars(by_name))
    parts.count(alignment, "search", "alignment")
    parts.count(step.objective, "generator_forward", "spectrograms, segments")
    parts.count(step.objective, "discriminator_losses", "discriminator's losses")
    parts.count(step.objective, "generator_losses", "generator's losses")
    parts.count(NetworkOptimizer, "backward", "backward passes")
    parts.count(NetworkOptimizer, "step", "optimizers")
    update()
    for part, number in parts.counted.most_common():
        print(f"{number:6d}  {part}")
    predictor: nn.Module = network.model.duration_predictor
    mask = torch.ones(config.batch_size, 1, config.tokens, device=runtime.device)
    hidden = torch.zeros(config.batch_size, network.model.config.hidden_size, config.tokens, device=runtime.device)
    arguments = (predictor, hidden, mask, None, torch.ones_like(mask), torch.randn_like)
    print(f"{gradient_of(duration_loss, *arguments):6d}  duration predictor, backward")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="mms")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--precision", default="bf16")
    for flag in ("--compile", "--cuda_graphs"):
        parser.add_argument(flag, type=lambda value: value == "true", default=False)
    arguments = vars(parser.parse_args())
    main(BenchmarkConfig(clip_s=6.0, tokens=180, **arguments))
