"""Small tensors on other devices."""

from __future__ import annotations

import pytest
import torch

from guidedcd.devices import tensor_like, to_device


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_numbers_have_the_dtype_and_device_of_the_other_tensor(dtype):
    """Numbers become the tensor that `new_tensor` creates, and an explicit dtype counts more."""
    like = torch.zeros(2, dtype=dtype)
    assert torch.equal(tensor_like([0.1, 1 / 3], like), like.new_tensor([0.1, 1 / 3]))
    assert tensor_like([1, 2], like, torch.long).dtype == torch.long
    assert tensor_like([1, 2], like.to("meta")).device.type == "meta"


@pytest.mark.gpu
def test_a_copy_to_the_gpu_does_not_wait():
    """A copy returns while the GPU is still busy with earlier work."""
    tensor, done = torch.ones(1 << 22), torch.cuda.Event()
    to_device(tensor, torch.device("cuda"))  # allocates pinned memory
    torch.cuda._sleep(2_000_000_000)
    done.record()
    copy = to_device(tensor, torch.device("cuda"))
    assert not done.query()
    assert torch.equal(copy.cpu(), tensor)
