"""Running means, and what they become when added up over processes."""

import pytest
import torch

from vits_trainer.metrics import RunningMeans, means


def read(running: RunningMeans) -> dict[str, float]:
    names = running.names()
    return means(names, running.state(names, torch.device("cpu")))


def test_mean_is_weighted():
    running = RunningMeans()
    running.add({"a": torch.tensor(1.0), "b": torch.tensor(10.0)}, weight=1)
    running.add({"a": torch.tensor(4.0)}, weight=3)
    assert read(running) == {"a": (1 + 3 * 4) / 4, "b": 10.0}


def test_means_over_processes_are_those_of_all_their_clips():
    first, second = RunningMeans(), RunningMeans()
    first.add({"a": torch.tensor(1.0)}, weight=4)
    second.add({"a": torch.tensor(7.0)}, weight=2)
    states = [running.state(["a"], torch.device("cpu")) for running in (first, second)]
    assert means(["a"], sum(states)) == {"a": pytest.approx((4 * 1 + 2 * 7) / 6)}


def test_names_are_sorted_whatever_their_order():
    running = RunningMeans()
    running.add({"b": torch.tensor(2.0), "a": torch.tensor(1.0)}, weight=1)
    assert running.names() == ["a", "b"]
    assert running.state(running.names(), torch.device("cpu")).tolist() == [[1.0, 2.0], [1.0, 1.0]]


def test_name_that_was_not_added_here_counts_nothing():
    running = RunningMeans()
    running.add({"a": torch.tensor(2.0)}, weight=3)
    assert running.state(["a", "z"], torch.device("cpu")).tolist() == [[6.0, 0.0], [3.0, 0.0]]


def test_many_small_values_are_not_lost_beside_a_great_one():
    running = RunningMeans()
    running.add({"a": torch.tensor(1e8)}, weight=1)
    for _ in range(100):
        running.add({"a": torch.tensor(1.0)}, weight=1)  # float32 would swallow each of them
    assert read(running)["a"] == pytest.approx((1e8 + 100) / 101, rel=1e-12)


def test_adding_keeps_no_graph():
    running = RunningMeans()
    running.add({"a": torch.tensor(2.0, requires_grad=True) * 3}, weight=1)
    assert not running.state(["a"], torch.device("cpu")).requires_grad


def test_nan_stays_visible():
    running = RunningMeans()
    running.add({"a": torch.tensor(float("nan"))}, weight=1)
    running.add({"a": torch.tensor(1.0)}, weight=1)
    mean = read(running)["a"]
    assert mean != mean


def test_nothing_is_left_after_reset():
    running = RunningMeans()
    running.add({"a": torch.tensor(5.0)}, weight=1)
    running.reset()
    assert running.names() == []
    running.add({"a": torch.tensor(1.0)}, weight=1)
    assert read(running) == {"a": 1.0}


def test_name_without_weight_has_no_mean():
    assert means(["a", "b"], torch.tensor([[0.0, 4.0], [0.0, 2.0]])) == {"b": 2.0}
