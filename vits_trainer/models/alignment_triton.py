"""The alignment search on a GPU: one Triton program a clip, nothing read back to the host."""

import torch
import triton
import triton.language as tl
from torch import Tensor


def search_on_gpu(scores: Tensor, frame_lengths: Tensor, token_lengths: Tensor) -> Tensor:
    """:func:`vits_trainer.models.alignment.search`, where ``scores`` is.

    Args:
        scores: (B, T, S) float32 or float64, contiguous; only read.
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


@triton.jit  # type: ignore[untyped-decorator]
def _search_clip(  # type: ignore[no-untyped-def]
    scores, frame_lengths, token_lengths, rows, advanced, token_of_frame, max_frames, max_tokens, block: tl.constexpr
):
    """As its namesake on the CPU. A row goes through memory, as each token needs its left neighbour: two rows in
    turn, with one barrier between writing and reading."""
    clip = tl.program_id(0).to(tl.int64)
    frames = tl.load(frame_lengths + clip)
    tokens = tl.load(token_lengths + clip)
    scores += clip * max_frames * max_tokens
    advanced += clip * max_frames * max_tokens
    token_of_frame += clip * max_frames
    rows += clip * 2 * block
    token = tl.arange(0, block)
    inside = token < tokens
    best = tl.where(token == 0, tl.load(scores), float("-inf"))
    for frame in range(1, frames):
        row = rows + (frame % 2) * block
        tl.store(row + token, best)
        tl.debug_barrier()
        steps = tl.load(row + token - 1, mask=token > 0, other=float("-inf"))
        step = steps > best
        tl.store(advanced + frame * max_tokens + token, step.to(tl.int8), mask=inside)
        score = tl.load(scores + frame * max_tokens + token, mask=inside, other=float("-inf"))
        best = tl.where(step, steps, best) + score
    tl.debug_barrier()
    position = tokens - 1
    for back in range(frames):
        frame = frames - 1 - back
        tl.store(token_of_frame + frame, position)
        moved = tl.load(advanced + frame * max_tokens + position, mask=frame > 0, other=0)
        position -= moved.to(tl.int64)
