"""Monotonic alignment search against the PyPI package and exhaustive search."""

import itertools
import subprocess
import sys
import types

import monotonic_alignment_search
import numpy as np
import pytest
import torch
from torch.distributions import Normal

from vits_trainer.models import alignment
from vits_trainer.models.alignment import durations, expand, log_likelihoods, search
from vits_trainer.models.spectrogram import frame_mask


def lengths(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def one_hot(token_of_frame: torch.Tensor, frame_lengths: torch.Tensor, tokens: int) -> torch.Tensor:
    """(B, S, T)."""
    path = torch.nn.functional.one_hot(token_of_frame, tokens).float().transpose(1, 2)
    return path * frame_mask(frame_lengths, token_of_frame.shape[1])


def score_of(scores: torch.Tensor, path: list[int]) -> float:
    return float(sum(scores[t, s].double() for t, s in enumerate(path)))


def all_paths(frames: int, tokens: int) -> list[list[int]]:
    """Returns all monotonic paths through ``tokens`` without skips."""
    return [
        [sum(t >= cut for cut in cuts) for t in range(frames)]
        for cuts in itertools.combinations(range(1, frames), tokens - 1)
    ]


@pytest.mark.parametrize(("frames", "tokens"), [(1, 1), (4, 1), (5, 5), (6, 2), (7, 3), (8, 4), (8, 7)])
def test_search_finds_the_best_path(frames, tokens):
    for seed in range(20):
        scores = torch.randn(frames, tokens, generator=torch.Generator().manual_seed(seed)) * 10
        best = max(all_paths(frames, tokens), key=lambda path: score_of(scores, path))
        assert search(scores[None], lengths(frames), lengths(tokens))[0].tolist() == best


def test_search_in_float64_distinguishes_scores_equal_in_float32():
    scores = 1000 + 1e-9 * torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert len(scores.float().unique()) == 1
    best = max(all_paths(6, 3), key=lambda path: score_of(scores, path))
    assert search(scores[None], lengths(6), lengths(3))[0].tolist() == best
    assert search(scores[None].float(), lengths(6), lengths(3))[0].tolist() != best


@pytest.mark.parametrize("offset", [0.0, -1e4])
def test_search_equals_the_pypi_package(offset):
    generator = torch.Generator().manual_seed(3)
    frame_lengths, token_lengths = lengths(50, 31, 20, 9, 40), lengths(20, 12, 20, 1, 17)
    scores = torch.randn(5, 50, 20, generator=generator) * 30 + offset
    mask = frame_mask(token_lengths, 20).transpose(1, 2) * frame_mask(frame_lengths, 50)  # (B, S, T)
    expected = monotonic_alignment_search.maximum_path(scores.transpose(1, 2).contiguous(), mask)
    result = one_hot(search(scores, frame_lengths, token_lengths), frame_lengths, 20)
    assert torch.equal(result, expected.float())


def test_equal_number_of_frames_and_tokens_gives_the_diagonal():
    scores = torch.zeros(1, 6, 6)
    scores[0, :, 0] = 1e6  # staying on token 0 would be worth more
    assert search(scores, lengths(6), lengths(6))[0].tolist() == [0, 1, 2, 3, 4, 5]


def test_single_token_is_assigned_all_frames():
    assert search(torch.randn(1, 7, 1), lengths(7), lengths(1))[0].tolist() == [0] * 7


@pytest.mark.parametrize("value", [0.0, -1e9])
def test_ties_assign_each_token_a_frame(value):
    path = search(torch.full((1, 9, 4), value), lengths(9), lengths(4))[0]
    assert path.diff().min() >= 0
    assert sorted(set(path.tolist())) == [0, 1, 2, 3]


def test_very_low_scores_keep_the_path_in_bounds():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        scores = torch.where(torch.rand(1, 8, 4, generator=generator) < 0.5, -1e9, 0.0)
        path = search(scores, lengths(8), lengths(4))[0].tolist()
        best = max(score_of(scores[0], candidate) for candidate in all_paths(8, 4))
        assert score_of(scores[0], path) == best
        assert path in all_paths(8, 4)


@pytest.mark.parametrize("padding", [0.0, 1e9, -1e9, float("nan"), float("inf")])
def test_padding_does_not_change_the_path(padding):
    scores = torch.randn(2, 12, 6, generator=torch.Generator().manual_seed(1))
    alone = search(scores[1:, :7, :3], lengths(7), lengths(3))
    padded = scores.clone()
    padded[1, 7:], padded[1, :, 3:] = padding, padding
    together = search(padded, lengths(12, 7), lengths(6, 3))
    assert together[1].tolist() == alone[0].tolist() + [0] * 5
    assert torch.equal(together[0], search(scores[:1], lengths(12), lengths(6))[0])


def test_log_likelihoods_match_the_normal_distribution():
    generator = torch.Generator().manual_seed(0)
    latents, means, log_stds = (torch.randn(2, 5, size, generator=generator) for size in (7, 4, 4))
    prior = Normal(means[:, :, None].double(), log_stds[:, :, None].double().exp())  # (B, C, 1, S)
    expected = prior.log_prob(latents[..., None].double()).sum(1)
    result = log_likelihoods(latents, means, log_stds)
    np.testing.assert_allclose(result.numpy(), expected.numpy(), rtol=1e-4, atol=1e-3)


def test_log_likelihoods_are_float32_under_autocast():
    latents, means, log_stds = torch.randn(1, 5, 7), torch.randn(1, 5, 4), torch.randn(1, 5, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = log_likelihoods(latents.bfloat16(), means, log_stds)
    assert torch.equal(result, log_likelihoods(latents.bfloat16().float(), means, log_stds))


def test_durations_sum_to_the_frames_and_are_at_least_one():
    frame_lengths, token_lengths = lengths(20, 13), lengths(6, 4)
    path = search(torch.randn(2, 20, 6), frame_lengths, token_lengths)
    counted = durations(path, frame_mask(frame_lengths, 20), 6)
    assert counted.sum(2)[:, 0].tolist() == [20, 13]
    assert (counted[0, 0] >= 1).all()
    assert (counted[1, 0, :4] >= 1).all()
    assert counted[1, 0, 4:].tolist() == [0, 0]
    assert torch.equal(counted[:, 0], one_hot(path, frame_lengths, 6).sum(2))


def test_expansion_and_its_gradient_equal_the_product_with_the_path():
    frame_lengths, token_lengths = lengths(20, 13), lengths(6, 4)
    path = search(torch.randn(2, 20, 6), frame_lengths, token_lengths)
    hot, weights = one_hot(path, frame_lengths, 6), torch.randn(2, 3, 20)
    values = torch.randn(2, 3, 6, requires_grad=True)
    expanded = expand(values, path, frame_mask(frame_lengths, 20))
    torch.testing.assert_close(expanded, values @ hot)
    (expanded * weights).sum().backward()
    torch.testing.assert_close(values.grad, weights @ hot.transpose(1, 2))


def test_nan_scores_give_a_valid_path() -> None:
    """The update is masked elsewhere; the search must not go out of bounds."""
    scores = torch.full((1, 9, 4), torch.nan)
    path = search(scores, lengths(9), lengths(4))[0]
    assert path.min() >= 0
    assert path.max() < 4


@pytest.mark.parametrize(
    ("error", "falls_back"),
    [
        (RuntimeError("Failed to find C compiler. Please specify via CC environment variable"), True),
        (subprocess.CalledProcessError(1, "gcc"), True),
        (ImportError("No module named 'triton'"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    ],
)
def test_search_without_a_c_compiler_falls_back_to_the_cpu(monkeypatch, caplog, error, falls_back):
    """Without a GPU: the error that Triton raises is ours."""

    def fail(*_: torch.Tensor) -> torch.Tensor:
        raise error

    module = types.ModuleType("vits_trainer.models.alignment_triton")
    module.search_on_gpu = fail
    monkeypatch.setitem(sys.modules, module.__name__, module)
    compiles = alignment._triton_compiles.__wrapped__
    if falls_back:
        assert not compiles(torch.device("cpu"))
        assert "Install gcc and Python's headers" in caplog.text
    else:
        with pytest.raises(RuntimeError, match="illegal memory access"):
            compiles(torch.device("cpu"))
