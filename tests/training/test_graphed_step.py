"""Updates that are replayed on tensors that stay in place.

A graph needs a GPU; here, ``capture`` returns a function that runs the captured update again. Everything that the
update reads from Python is then as it was at the capture, as in a graph, so that what was not copied is found out.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.support.benchmark import SMALL
from vits_trainer.config.tools import BenchmarkConfig
from vits_trainer.data.dataset import Batch
from vits_trainer.diagnostics.benchmark import our_update, workload
from vits_trainer.distributed.runtime import Runtime, seed_all
from vits_trainer.training import graphed_step
from vits_trainer.training.graphed_step import GraphedTrainStep, Update
from vits_trainer.training.objective import LossDenominators

CONFIG = BenchmarkConfig(**{**SMALL, "clip_s": 1.0, "tokens": 12})
SHAPES = [CONFIG, replace(CONFIG, tokens=9), CONFIG, CONFIG, replace(CONFIG, tokens=9), CONFIG]
"""Of six updates: the third and the fifth are captured, the fourth and the sixth are replayed."""


def updates() -> Iterator[tuple[Batch, LossDenominators, float]]:
    for number, config in enumerate(SHAPES):
        batch = workload(replace(config, seed=number))
        yield batch, LossDenominators(2 + number, 24.0, 120.0 + number, 64.0), 1e-3 / (1 + number)


def values_of(wrap: Callable[[object], object]) -> tuple[list[dict[str, Tensor]], list[Tensor]]:
    train_step, _ = our_update(CONFIG, Runtime("fp32", 1))
    call = wrap(train_step)
    values = []
    for number, (batch, denominators, rate) in enumerate(updates()):
        seed_all(number)
        values.append(call(batch, denominators, False, True, rate))
    networks = [optimizer.network for optimizer in train_step.optimizers]
    return values, [parameter.detach() for network in networks for parameter in network.parameters()]


@pytest.mark.slow
def test_replayed_updates_equal_others(monkeypatch: pytest.MonkeyPatch) -> None:
    captured = []

    def capture(update: Update) -> Update:
        captured.append(update)
        return update

    found, weights = values_of(lambda step: GraphedTrainStep(step, capture))
    assert len(captured) == 2
    monkeypatch.setattr(graphed_step, "MAX_GRAPHS", 0)
    expected, other_weights = values_of(lambda step: GraphedTrainStep(step, capture))
    assert len(captured) == 2
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name].detach(), value.detach()) for name, value in theirs.items())
    assert all(map(torch.equal, weights, other_weights))
    plain, _ = values_of(lambda step: step)
    for ours, theirs in zip(found, plain, strict=True):
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name].detach(), value.detach(), rtol=1e-2, atol=1e-6)


def test_values_survive_the_next_replay() -> None:
    found, _ = values_of(lambda step: GraphedTrainStep(step, _with_fixed_outputs))
    third, last = found[3]["generator/mel"], found[5]["generator/mel"]
    assert third.item() != last.item()


def _with_fixed_outputs(update: Update) -> Update:
    """Writes each replay's values to the same tensors, as a graph does."""
    outputs: dict[str, Tensor] = {}

    def replay() -> dict[str, Tensor]:
        for name, value in update().items():
            outputs.setdefault(name, torch.empty_like(value.detach())).copy_(value.detach())
        return outputs

    return replay


@pytest.mark.parametrize("rate", [None, 1e-3])
def test_updates_without_a_step_or_without_clips_are_not_captured(rate: float | None) -> None:
    def capture(update: Update) -> Update:
        raise AssertionError("captured")

    train_step, _ = our_update(CONFIG, Runtime("fp32", 1))
    graphed = GraphedTrainStep(train_step, capture)
    batch = workload(CONFIG)
    if rate is not None:
        batch = replace(batch, clip_ids=())
    for _ in range(3):
        values = graphed(batch, LossDenominators(2, 24, 120, 64), False, True, rate)
    assert ("grad_norm/generator" in values) == (rate is not None)
