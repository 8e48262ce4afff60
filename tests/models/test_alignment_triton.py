"""GPU alignment search against the CPU implementation."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from vits_trainer.models.alignment import search

pytestmark = pytest.mark.slow

ON_GPU = """
import numpy as np, torch
from vits_trainer.models.alignment import search
from vits_trainer.models.alignment_triton import search_on_gpu
generator = torch.Generator().manual_seed(1)
cases = 0

def close(scores):
    return 1000 + 1e-9 * scores.double()  # equal in float32

for frames, tokens in [(1, 1), (2, 1), (9, 9), (40, 17), (33, 32), (70, 64)]:
    for clips in (1, 3):
        for kind in ("random", "ties", "steep", "close"):
            token_lengths = torch.randint(1, tokens + 1, (clips,), generator=generator)
            frame_lengths = torch.maximum(token_lengths, torch.randint(1, frames + 1, (clips,), generator=generator))
            scores = torch.randn(clips, frames, tokens, generator=generator) * 30
            scores = {"random": scores, "ties": scores.sign(), "steep": scores * 1e4, "close": close(scores)}[kind]
            original = scores.clone()
            result = search_on_gpu(scores, frame_lengths, token_lengths)
            assert torch.equal(scores, original), "the input was modified"
            assert torch.equal(result, search(scores, frame_lengths, token_lengths)), (frames, tokens, kind)
            cases += 1
print(cases)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_gpu_search_equals_cpu_search_in_triton_interpreter() -> None:
    """Runs in a subprocess, as Triton selects the interpreter at import. The next test covers the GPU."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    ended = subprocess.run([sys.executable, "-c", ON_GPU], capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) == 48


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("clips", "frames", "tokens"), [(1, 1, 1), (16, 400, 180), (64, 500, 180), (3, 1024, 600)])
def test_gpu_search_equals_cpu_search(clips: int, frames: int, tokens: int) -> None:
    generator = torch.Generator().manual_seed(frames)
    token_lengths = torch.randint(1, tokens + 1, (clips,), generator=generator)
    frame_lengths = torch.maximum(token_lengths, torch.randint(1, frames + 1, (clips,), generator=generator))
    scores = torch.randn(clips, frames, tokens, generator=generator) * 30
    result = search(scores.cuda(), frame_lengths.cuda(), token_lengths.cuda())
    assert torch.equal(result.cpu(), search(scores, frame_lengths, token_lengths))
