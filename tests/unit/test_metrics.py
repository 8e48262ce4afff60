"""Running means, and what they become when added up over processes."""

import pytest
import torch

from vits_trainer.metrics import RunningMeans, means


def test_mean_is_weighted():
    running = RunningMeans()
    running.add({"a": torch.tensor(1.0), "b": torch.tensor(10.0)}, weight=1)
    running.add({"a": torch.tensor(4.0)}, weight=3)
    assert means(*running.state()) == {"a": (1 + 3 * 4) / 4, "b": 10.0}


def test_means_over_processes_are_those_of_all_their_clips():
    first, second = RunningMeans(), RunningMeans()
    first.add({"a": torch.tensor(1.0)}, weight=4)
    second.add({"a": torch.tensor(7.0)}, weight=2)
    names, state = first.state()
    assert means(names, state + second.state()[1]) == {"a": pytest.approx((4 * 1 + 2 * 7) / 6)}


def test_names_are_sorted_whatever_their_order():
    running = RunningMeans()
    running.add({"b": torch.tensor(2.0), "a": torch.tensor(1.0)}, weight=1)
    names, state = running.state()
    assert names == ["a", "b"]
    assert state.tolist() == [[1.0, 2.0], [1.0, 1.0]]


def test_many_small_values_are_not_lost_beside_a_great_one():
    running = RunningMeans()
    running.add({"a": torch.tensor(1e8)}, weight=1)
    for _ in range(100):
        running.add({"a": torch.tensor(1.0)}, weight=1)  # float32 would swallow each of them
    assert means(*running.state())["a"] == pytest.approx((1e8 + 100) / 101, rel=1e-12)


def test_adding_keeps_no_graph():
    running = RunningMeans()
    running.add({"a": torch.tensor(2.0, requires_grad=True) * 3}, weight=1)
    assert not running.state()[1].requires_grad


def test_nan_stays_visible():
    running = RunningMeans()
    running.add({"a": torch.tensor(float("nan"))}, weight=1)
    running.add({"a": torch.tensor(1.0)}, weight=1)
    mean = means(*running.state())["a"]
    assert mean != mean


def test_nothing_is_left_after_reset():
    running = RunningMeans()
    running.add({"a": torch.tensor(5.0)}, weight=1)
    running.reset()
    names, state = running.state()
    assert (names, tuple(state.shape)) == ([], (2, 0))
    assert means(names, state) == {}
    running.add({"a": torch.tensor(1.0)}, weight=1)
    assert means(*running.state()) == {"a": 1.0}


def test_name_without_weight_has_no_mean():
    assert means(["a", "b"], torch.tensor([[0.0, 4.0], [0.0, 2.0]])) == {"b": 2.0}
