"""Monotonic alignment search (Kim et al., Glow-TTS, 2020, section 3.2; VITS, 2021, section 2.2.1).

Finds the most likely alignment that assigns one token to each frame, in order and without skipping a token.
"""

import logging
import math
import subprocess  # nosec B404
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vits_trainer.models.precision import at_least_float32

logger = logging.getLogger(__name__)


def log_likelihoods(latents: Tensor, means: Tensor, log_stds: Tensor) -> Tensor:
    """Returns the log-likelihood of each latent frame under each token's prior.

    The value at [t, s] is ``log N(z_p[t]; m_p[s], exp(log_std_p[s]))``.

    Args:
        latents: (B, C, T) posterior sample after the flow.
        means: (B, C, S) prior mean per token.
        log_stds: (B, C, S) log standard deviation of the prior.

    Returns:
        (B, T, S) in the dtype of the arguments, at least float32.
    """
    with torch.autocast(latents.device.type, enabled=False):
        latents, means, log_stds = map(at_least_float32, (latents, means, log_stds))
        precision = torch.exp(-2 * log_stds)
        constant = (-0.5 * math.log(2 * math.pi) - log_stds - 0.5 * means.square() * precision).sum(1)
        squares = torch.matmul(-0.5 * latents.square().transpose(1, 2), precision)
        products = torch.matmul(latents.transpose(1, 2), means * precision)
        return squares + products + constant[:, None, :]


def score_std(scores: Tensor, frame_mask: Tensor, text_mask: Tensor) -> Tensor:
    """Returns the standard deviation of each clip's scores, (B, 1, 1).

    Args:
        scores: (B, T, S).
        frame_mask: (B, 1, T).
        text_mask: (B, 1, S).
    """
    valid = frame_mask.transpose(1, 2) * text_mask
    count = valid.sum((1, 2), keepdim=True)
    mean = (scores * valid).sum((1, 2), keepdim=True) / count
    return (((scores - mean).square() * valid).sum((1, 2), keepdim=True) / count).sqrt()


def search(scores: Tensor, frame_lengths: Tensor, token_lengths: Tensor) -> Tensor:
    """Returns the monotonic alignment with the largest sum of scores.

    Args:
        scores: (B, T, S) score of assigning frame t to token s.
        frame_lengths: (B,) frames per clip; at least as many as tokens (checked when the data is read).
        token_lengths: (B,) tokens per clip.

    Returns:
        (B, T) int64, token index of each frame, on the device of ``scores``; 0 after a clip's last frame.
    """
    scores = at_least_float32(scores.detach()).contiguous()
    if scores.is_cuda and _triton_compiles(scores.device):
        from vits_trainer.models.alignment_triton import search_on_gpu  # noqa: PLC0415 - Triton comes with CUDA only

        return search_on_gpu(scores, frame_lengths, token_lengths)
    token_of_frame = np.zeros(scores.shape[:2], dtype=np.int64)
    _search_batch(scores.cpu().numpy(), frame_lengths.cpu().numpy(), token_lengths.cpu().numpy(), token_of_frame)
    return torch.from_numpy(token_of_frame).to(scores.device)


@cache
def _triton_compiles(device: torch.device) -> bool:
    """Returns whether Triton can compile: it needs a C compiler and Python's headers. Logs a warning if not."""
    try:
        from vits_trainer.models.alignment_triton import search_on_gpu  # noqa: PLC0415 - Triton comes with CUDA only

        one = torch.ones(1, dtype=torch.int64, device=device)
        search_on_gpu(torch.zeros(1, 1, 1, device=device), one, one)
    except (ImportError, RuntimeError, subprocess.CalledProcessError) as error:
        if isinstance(error, RuntimeError) and "C compiler" not in str(error):
            raise
        logger.warning(
            "The alignment is searched on the CPU, which takes some 5 to 10 ms per update: Triton cannot compile (%s). "
            "Install gcc and Python's headers (Debian, Ubuntu: apt install gcc python3-dev).",
            " ".join(str(error).split())[:200],
        )
        return False
    return True


def durations(token_of_frame: Tensor, frame_mask: Tensor, tokens: int) -> Tensor:
    """Returns the number of frames per token, (B, 1, S), from (B, T) token indices and a (B, 1, T) mask.

    The dtype is that of the mask, at least float32.
    """
    valid = at_least_float32(frame_mask[:, 0])
    return valid.new_zeros(len(valid), tokens).scatter_add_(1, token_of_frame, valid)[:, None]


def expand(values: Tensor, token_of_frame: Tensor, frame_mask: Tensor) -> Tensor:
    """Repeats each token's values over its frames: (B, C, S) to (B, C, T), zero after each clip's end."""
    index = token_of_frame[:, None].expand(-1, values.shape[1], -1)
    return values.gather(2, index) * frame_mask.to(values.dtype)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _search_batch(
    scores: NDArray[np.floating[Any]],
    frame_lengths: NDArray[np.int64],
    token_lengths: NDArray[np.int64],
    token_of_frame: NDArray[np.int64],
) -> None:
    """Searches clip by clip in one thread: 64 clips of 180 tokens and 500 frames take 2 ms."""
    for b in range(scores.shape[0]):
        _search_clip(scores[b], frame_lengths[b], token_lengths[b], token_of_frame[b])


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _search_clip(
    scores: NDArray[np.floating[Any]], frames: int, tokens: int, token_of_frame: NDArray[np.int64]
) -> None:
    """Runs the forward recursion frame by frame, then backtracks along the best predecessors.

    Each row is computed in full and without branches so that it vectorizes over tokens. Tokens that are not reachable
    yet have a score of minus infinity.
    """
    advanced = np.empty((frames, tokens), dtype=np.bool_)
    best = np.full(tokens + 1, -np.inf, dtype=scores.dtype)  # index 0 is a sentinel left of the first token
    next_best = np.full(tokens + 1, -np.inf, dtype=scores.dtype)
    best[1] = scores[0, 0]
    for t in range(1, frames):
        for s in range(tokens):
            stay, advance = best[s + 1], best[s]
            advanced[t, s] = advance > stay
            next_best[s + 1] = (advance if advance > stay else stay) + scores[t, s]
        best, next_best = next_best, best
    s = tokens - 1
    for t in range(frames - 1, -1, -1):
        token_of_frame[t] = s
        if t > 0 and advanced[t, s]:
            s -= 1
