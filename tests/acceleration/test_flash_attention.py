"""FlashAttention of a package of its own: when it is active, and what prevents it."""

from __future__ import annotations

import types

import pytest
import torch
from torch.nn import functional as nnf

from guidedcd.acceleration import attention_backend
from guidedcd.acceleration import flash_attention as module
from guidedcd.config.sections import Preprocess, Train
from guidedcd.errors import GuidedCDError

CUDA = torch.device("cuda")


class Registry:
    """In place of PyTorch's registry of implementations."""

    current: str | None = None

    def current_flash_attention_impl(self) -> str | None:
        """The active one."""
        return self.current

    def activate_flash_attention_impl(self, name: str) -> None:
        """Activate one."""
        self.current = name

    def restore_flash_attention_impl(self) -> None:
        """Activate PyTorch's own, which fails where it is active already."""
        assert self.current is not None
        self.current = None


@pytest.fixture
def registry(monkeypatch):
    """A registry whose implementations work."""
    one = Registry()
    monkeypatch.setattr(module, "attention", one)
    monkeypatch.setattr(module, "_try", lambda device: None)
    return one


def test_it_is_active_inside_and_takes_part(registry):
    """Inside the context its kernel is compared with the others; afterwards PyTorch's own one is active again."""
    q = torch.empty(1, 2, 64, 64, device="meta")
    with module.flash_attention(Preprocess(flash_attention="FA4"), CUDA):
        assert module.active() == "FA4"
        assert attention_backend.candidates(q, True) == ["cudnn", "flash"]
        with module.flash_attention(Train(), CUDA):
            assert module.active() == "FA4"
    assert module.active() is None
    assert attention_backend.candidates(q, True) == ["cudnn"]


def test_without_the_option_nothing_is_activated():
    """A run without the option needs neither a GPU nor a package."""
    with module.flash_attention(Train(), torch.device("cpu")):
        assert module.active() is None


@pytest.mark.parametrize(
    ("fast", "device", "message"),
    [("blocks", "cpu", "needs an NVIDIA GPU; leave it out on 'cpu'"), ("no", "cuda", "needs the option fast")],
)
def test_what_it_needs(registry, fast, device, message):
    """Without a GPU, or where no kernels are compared, the option is an error and not without effect."""
    with pytest.raises(GuidedCDError, match=message):
        module.activate(Train(flash_attention="FA4", fast=fast), torch.device(device))
    assert registry.current is None


def test_an_old_pytorch(monkeypatch):
    """Where PyTorch cannot restore its own implementation, the error names the version that can."""
    monkeypatch.setattr(module, "attention", types.SimpleNamespace(activate_flash_attention_impl=print))
    with pytest.raises(GuidedCDError, match="needs PyTorch 2.11 or newer"):
        module.activate(Train(flash_attention="FA4"), CUDA)


@pytest.mark.parametrize("error", [ImportError("No module named 'flash_attn'"), AssertionError(), RuntimeError("CuTe")])
@pytest.mark.parametrize("when", ["activate_flash_attention_impl", "_try"])
def test_a_package_that_is_missing_or_does_not_fit(registry, monkeypatch, error, when):
    """Whatever the package raises is one error that names the page with versions, and PyTorch's own one stays."""

    def fail(argument):
        raise error

    monkeypatch.setattr(module if when == "_try" else registry, when, fail)
    with pytest.raises(GuidedCDError, match=r"does not work with PyTorch .*that fits: see docs/how-to/speed.md"):
        module.activate(Train(flash_attention="FA4"), CUDA)
    assert registry.current is None


def test_the_page_names_versions(repository):
    """The page of the error has the command that installs the package."""
    assert "pip install 'flash-attn-4" in (repository / module.PAGE).read_text()


@pytest.mark.gpu
def test_flash_attention_4_is_as_exact_as_the_usual_kernel():
    """Where its package is installed, values and gradients have bfloat16's error against float32."""
    pytest.importorskip("flash_attn.cute")
    if torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("FlashAttention 4 needs a Hopper or Blackwell GPU")
    torch.manual_seed(0)
    leaves = list(torch.randn(3, 1, 500, 4, 128, device="cuda"))
    q, k, v = (x.transpose(1, 2).requires_grad_() for x in leaves)

    def values(*tensors):
        out = nnf.scaled_dot_product_attention(*tensors)
        return out, *torch.autograd.grad(out, tensors, torch.ones_like(out))

    exact = values(q, k, v)
    narrow = [x.detach().bfloat16().requires_grad_() for x in (q, k, v)]
    with module.flash_attention(Train(flash_attention="FA4"), q.device), attention_backend.first("flash"):
        outputs = values(*narrow)
    for output, reference in zip(outputs, exact, strict=True):
        assert (output.float() - reference).norm() < 1e-2 * reference.norm()
