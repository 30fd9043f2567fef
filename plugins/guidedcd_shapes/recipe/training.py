"""Training by replaying a captured step: bfloat16 weights compute, float32 masters are updated and averaged."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from guidedcd.acceleration.cuda_graphs import captured, warm_up


class Trainer:
    """AdamW on float32 masters of the weights of `modules`; `loss()` draws a batch and returns a scalar."""

    def __init__(self, modules: Sequence[nn.Module], loss: Callable[[], Tensor], graph: bool = True) -> None:
        self.live = [p for m in modules for p in m.parameters() if p.requires_grad]
        device = self.live[0].device
        self.master = [p.detach().float().clone() for p in self.live]
        self.average = [p.clone() for p in self.master]
        self.flat = torch.zeros(sum(p.numel() for p in self.live), device=device)
        self.gradients = [
            chunk.view_as(p)
            for p, chunk in zip(self.master, self.flat.split([p.numel() for p in self.live]), strict=True)
        ]
        for p, gradient in zip(self.master, self.gradients, strict=True):
            p.grad = gradient
        self.rate, self.last = torch.zeros((), device=device), torch.zeros((), device=device)
        cuda = device.type == "cuda"
        options = {"fused": True, "capturable": True} if cuda else {}
        self.optimiser = torch.optim.AdamW(
            self.master, lr=self.rate if cuda else 0.0, betas=(0.9, 0.99), weight_decay=1e-3, **options
        )
        self.loss, self.steps = loss, 0
        self.replay = self._step
        if cuda and graph:
            warm_up(self._step)
            self.replay = captured(self._step)[0].replay

    def _step(self) -> None:
        loss = self.loss()
        gradients = torch.autograd.grad(loss, self.live, allow_unused=True)
        with torch.no_grad():
            for target, g in zip(self.gradients, gradients, strict=True):
                target.zero_() if g is None else target.copy_(g)
            self.last.copy_(loss.detach())
            self.flat.mul_((1 / (self.flat.norm() + 1e-6)).clamp(max=1.0))
            self.optimiser.step()
            torch._foreach_copy_(list[Tensor](self.live), self.master)

    def step(self, rate: float) -> None:
        """Do one step of the optimiser with this learning rate."""
        self.rate.fill_(rate)
        if not self.rate.is_cuda:
            self.optimiser.param_groups[0]["lr"] = rate
        self.replay()
        self.steps += 1
        if self.steps % 8 == 0:
            decay = min(0.999, (1 + self.steps) / (60 + self.steps))
            torch._foreach_lerp_(self.average, self.master, 1 - decay**8)

    @torch.no_grad()
    def finish(self, *modules: nn.Module) -> None:
        """Copy the averaged weights into `modules`, which are built like the trained ones."""
        source = self.average if self.steps >= 8 else self.master
        targets = [p for m in modules for p in m.parameters() if p.requires_grad]
        for p, value in zip(targets, source, strict=True):
            p.copy_(value)


def cosine(fraction: float, step: int, peak: float, warmup: int = 200, hold: float = 0.0) -> float:
    """Learning rate: linear warm-up, `peak` until `hold`, then half a cosine down to zero at fraction 1."""
    decay = 1.0 if fraction < hold else 0.5 + 0.5 * math.cos(math.pi * (fraction - hold) / (1 - hold))
    return peak * min(1.0, (step + 1) / warmup) * decay + 1e-6


class Graphed:
    """A function of tensors of fixed shapes, captured as a CUDA graph on a GPU, called directly elsewhere."""

    def __init__(self, function: Callable[..., Tensor], *example: Tensor) -> None:
        self.function, self.graph = function, None
        if example[0].is_cuda:
            self.inputs = [e.clone() for e in example]
            warm_up(lambda: function(*self.inputs), 2)
            self.graph, self.output = captured(lambda: function(*self.inputs))

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self.graph is None:
            return self.function(*inputs)
        for buffer, value in zip(self.inputs, inputs, strict=True):
            buffer.copy_(value)
        self.graph.replay()
        return self.output.clone()
