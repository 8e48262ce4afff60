"""Casting to at least float32."""

import pytest
import torch

from vits_trainer.models.precision import at_least_float32


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_narrow_dtypes_are_cast_to_float32_and_wide_dtypes_kept(dtype, expected):
    tensor = torch.tensor([1.5, -2.0], dtype=dtype, requires_grad=True)
    wide = at_least_float32(tensor)
    assert wide.dtype == expected
    assert wide.tolist() == [1.5, -2.0]
    (3 * wide).sum().backward()
    assert tensor.grad.dtype == dtype
    assert tensor.grad.tolist() == [3, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_tensor_is_not_copied(dtype):
    tensor = torch.zeros(2, dtype=dtype)
    assert at_least_float32(tensor) is tensor
