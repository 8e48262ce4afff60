"""Alignment search on a GPU: one Triton program per clip, without host synchronization."""

import torch
import triton
import triton.language as tl
from torch import Tensor


def search_on_gpu(scores: Tensor, frame_lengths: Tensor, token_lengths: Tensor) -> Tensor:
    """GPU implementation of :func:`vits_trainer.models.alignment.search`.

    Args:
        scores: (B, T, S) float32 or float64, contiguous; not modified.
        frame_lengths: (B,) int64.
        token_lengths: (B,) int64.

    Returns:
        (B, T) int64.
    """
    clips, frames, tokens = scores.shape
    block = triton.next_power_of_2(tokens)
    token_of_frame = torch.zeros(clips, frames, dtype=torch.int64, device=scores.device)
    advanced = torch.empty(clips, frames, tokens, dtype=torch.int8, device=scores.device)
    rows = torch.empty(clips, 2, block, dtype=scores.dtype, device=scores.device)
    warps = max(1, min(8, block // 64))
    _search_clip[(clips,)](
        scores, frame_lengths, token_lengths, rows, advanced, token_of_frame, frames, tokens, block, num_warps=warps
    )
    return token_of_frame


# Specialized for sizes divisible by 16, one epoch would compile 18 variants, a fraction of a second each.
@triton.jit(do_not_specialize=["max_frames", "max_tokens"])  # type: ignore[untyped-decorator]
def _search_clip(  # type: ignore[no-untyped-def]
    scores, frame_lengths, token_lengths, rows, advanced, token_of_frame, max_frames, max_tokens, block: tl.constexpr
):
    """Same recursion as on the CPU. Each token needs its left neighbour, so rows are exchanged through global memory:
    two alternating row buffers with one barrier between write and read."""
    clip = tl.program_id(0).to(tl.int64)
    frames = tl.load(frame_lengths + clip)
    tokens = tl.load(token_lengths + clip)
    scores += clip * max_frames * max_tokens
    advanced += clip * max_frames * max_tokens
    token_of_frame += clip * max_frames
    rows += clip * 2 * block
    token = tl.arange(0, block)
    is_token = token < tokens
    best = tl.where(token == 0, tl.load(scores), float("-inf"))
    for frame in range(1, frames):
        row = rows + (frame % 2) * block
        tl.store(row + token, best)
        tl.debug_barrier()
        advance = tl.load(row + token - 1, mask=token > 0, other=float("-inf"))
        is_advance = advance > best
        tl.store(advanced + frame * max_tokens + token, is_advance.to(tl.int8), mask=is_token)
        score = tl.load(scores + frame * max_tokens + token, mask=is_token, other=float("-inf"))
        best = tl.where(is_advance, advance, best) + score
    tl.debug_barrier()
    position = tokens - 1
    for offset in range(frames):
        frame = frames - 1 - offset
        tl.store(token_of_frame + frame, position)
        moved = tl.load(advanced + frame * max_tokens + position, mask=frame > 0, other=0)
        position -= moved.to(tl.int64)
