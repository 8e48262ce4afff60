"""Running means, and their sums over processes."""

import json

import pytest
import torch

from vits_trainer.training.meter import DeviceMeans

CPU = torch.device("cpu")
REACHED, MASKED = torch.tensor(True), torch.tensor(False)


def read(*ranks: DeviceMeans) -> dict[str, float]:
    return ranks[0].means(torch.stack([running.sums() for running in ranks]).sum(0))


def test_mean_is_weighted():
    running = DeviceMeans()
    running.add({"a": torch.tensor(1.0), "b": torch.tensor(10.0)}, weight=1, counts=REACHED)
    running.add({"a": torch.tensor(4.0)}, weight=3, counts=REACHED)
    assert read(running) == {"a": (1 + 3 * 4) / 4, "b": 10.0}


def test_shares_of_processes_add_up():
    first, second = DeviceMeans(2), DeviceMeans(2)
    for shares, weight in (((1.0, 7.0), 6), ((2.0, 0.0), 3)):
        for running, share in zip((first, second), shares, strict=True):
            running.add({"a": torch.tensor(share)}, weight=weight, counts=REACHED)
    assert read(first, second) == {"a": pytest.approx((6 * 8 + 3 * 2) / 9)}


def test_names_are_sorted_whatever_their_order():
    running = DeviceMeans()
    running.add({"b": torch.tensor(2.0), "a": torch.tensor(1.0)}, weight=1, counts=REACHED)
    assert running.names() == ["a", "b"]
    assert running.sums().tolist() == [[1.0, 2.0], [1.0, 1.0]]


def test_small_values_are_not_lost_next_to_a_large_one():
    running = DeviceMeans()
    running.add({"a": torch.tensor(1e8)}, weight=1, counts=REACHED)
    for _ in range(100):
        running.add({"a": torch.tensor(1.0)}, weight=1, counts=REACHED)  # lost in float32
    assert read(running)["a"] == pytest.approx((1e8 + 100) / 101, rel=1e-12)


def test_adding_keeps_no_graph():
    running = DeviceMeans()
    running.add({"a": torch.tensor(2.0, requires_grad=True) * 3}, weight=1, counts=REACHED)
    assert not running.sums().requires_grad


def test_nan_stays_visible():
    running = DeviceMeans()
    running.add({"a": torch.tensor(float("nan"))}, weight=1, counts=REACHED)
    running.add({"a": torch.tensor(1.0)}, weight=1, counts=REACHED)
    mean = read(running)["a"]
    assert mean != mean


def test_masked_update_is_excluded():
    running = DeviceMeans()
    running.add({"a": torch.tensor(float("nan"))}, weight=1, counts=MASKED)
    assert read(running) == {}
    running.add({"a": torch.tensor(3.0)}, weight=2, counts=REACHED)
    running.add({"a": torch.tensor(float("inf"))}, weight=5, counts=MASKED)
    assert read(running) == {"a": 3.0}


def test_reset_discards_all_values():
    running = DeviceMeans()
    running.add({"a": torch.tensor(5.0)}, weight=1, counts=REACHED)
    running.reset()
    assert running.names() == []
    assert running.means(running.sums()) == {}
    running.add({"a": torch.tensor(1.0)}, weight=1, counts=REACHED)
    assert read(running) == {"a": 1.0}


def filled(seed: int, world_size: int = 1) -> DeviceMeans:
    running, generator = DeviceMeans(world_size), torch.Generator().manual_seed(seed)
    for _ in range(5):
        shares = {"a": torch.rand((), generator=generator), "b": torch.rand((), generator=generator)}
        running.add(shares, weight=7, counts=REACHED)
    return running


def test_restored_means_continue_bit_exactly():
    original, restored = filled(1), DeviceMeans()
    restored.restore([json.loads(json.dumps(original.save()))], CPU)
    for running in (original, restored):
        running.add({"a": torch.tensor(1 / 3), "b": torch.tensor(1e-9)}, weight=3, counts=REACHED)
    assert restored.save() == original.save()
    assert read(restored) == read(original)


def test_fewer_processes_restore_the_sums_of_all():
    ranks, joined = [filled(1, 2), filled(2, 2)], DeviceMeans()
    joined.restore([running.save() for running in ranks], CPU)
    assert read(joined) == pytest.approx(read(*ranks), rel=1e-15)
