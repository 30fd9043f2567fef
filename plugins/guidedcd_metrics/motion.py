"""The amount of motion in videos: VBench's dynamic-degree rule on optical flow.

VBench computes the flow with RAFT, a trained network. Without its weights, it is computed by OpenCV's DIS, or by the
pyramidal, iterative method of Lucas and Kanade (1981; Bouguet 2001), which needs torch alone. `dynamic_degree` then has
the rule of VBench but not its numbers, and the two must not be compared. Legend: P pairs of frames, H and W their size
in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from guidedcd import GuidedCDError
from guidedcd_metrics import DynamicDegreeConfig
from guidedcd_metrics.flows import Flow, dis, has_opencv, raft

SMALLEST = 128
"""Short side in pixels from which DIS is the default. On smaller frames it finds motion in noise: on students of the
proving ground (48 pixels) its flow was twice the true speed, and the classical one within a third of it."""

CALLED = {
    "dis": "DIS flow",
    "classical": "classical flow",
    "raft": "RAFT",
    "auto": f"DIS flow from {SMALLEST} pixels on, classical flow below",
}
"""The flows in titles."""


class DynamicDegree:
    """Values `dynamic_degree` (1 if a video is dynamic by VBench's rule, else 0) and `flow_px` (its flow in pixels)."""

    def __init__(self, config: DynamicDegreeConfig) -> None:
        """Choose the flow, which the titles name.

        Raises:
            GuidedCDError: The flow is not installed, or lacks its weights.
        """
        self.config = config
        if (config.weights is None) == (config.flow == "raft"):
            raise GuidedCDError(
                "the flow 'raft' and its weights belong together: give --metrics.dynamic-degree.flow raft and "
                "--metrics.dynamic-degree.weights FILE."
            )
        self.flows: dict[str, Flow] = {"classical": flow}
        if config.flow == "dis" or (config.flow == "auto" and has_opencv()):
            self.flows["dis"] = _explaining(dis())
        if config.weights is not None:
            self.flows["raft"] = raft(config.weights)
        # The same before and after a call: an evaluation that continues has the scores, and calls nothing.
        called = CALLED["classical" if config.flow == "auto" and "dis" not in self.flows else config.flow]
        self.titles = {
            "dynamic_degree": f"share of videos that are dynamic (VBench's rule, {called})",
            "flow_px": f"optical flow in pixels per frame ({called})",
        }

    def chosen(self, side: int) -> str:
        """The name of the flow for frames with this short side in pixels."""
        if self.config.flow != "auto":
            return self.config.flow
        return "dis" if "dis" in self.flows and side >= SMALLEST else "classical"

    @torch.no_grad()
    def __call__(self, videos: Tensor, prompts: Sequence[object] = ()) -> dict[str, Tensor]:
        """Values (B,) on the CPU of videos (B, F, 3, H, W) in [0, 1].

        `flow_px` is the mean over pairs of judged frames of the mean of the 5 % largest flow magnitudes, in pixels
        per judged frame; NaN for a video of one frame.
        """
        judged = videos[:, :: stride(self.config.fps)].float()
        count, frames, _, height, width = judged.shape
        if frames < 2:
            return {"dynamic_degree": torch.zeros(count), "flow_px": torch.full((count,), float("nan"))}
        first, second = judged[:, :-1].flatten(0, 1), judged[:, 1:].flatten(0, 1)
        step, name = self.config.batch_size, self.chosen(min(height, width))
        scores = [
            largest(self.flows[name](first[i : i + step], second[i : i + step])) for i in range(0, len(first), step)
        ]
        pairs = torch.cat(scores).view(count, frames - 1).cpu()
        return {"dynamic_degree": dynamic(pairs, frames, height, width).float(), "flow_px": pairs.mean(1)}


def _explaining(flow: Flow) -> Flow:
    """A flow without the parts that do not explain the change of the frames, such as noise and torn objects."""

    def explained(first: Tensor, second: Tensor) -> Tensor:
        return explaining(flow(first, second), first.cpu(), second.cpu())

    return explained


def stride(fps: float) -> int:
    """Distance of the frames that VBench judges, about 8 of which are in a second."""
    return max(1, round(fps / 8))


def largest(flows: Tensor) -> Tensor:
    """Mean of the 5 % largest magnitudes (P,) of `flows` (P, 2, H, W), in pixels."""
    magnitude = flows.square().sum(1).sqrt().flatten(1)
    return magnitude.topk(max(1, int(0.05 * magnitude.shape[1])), dim=1).values.mean(1)


def dynamic(pairs: Tensor, frames: int, height: int, width: int) -> Tensor:
    """VBench's rule: enough pairs of frames exceed 6 pixels at a short side of 256.

    Args:
        pairs: Score of each pair of neighbouring frames (B, F - 1), in pixels.
        frames: Judged frames F; 4 of 16 must move, rounded half to even, so that two frames always pass.
        height: Frame height in pixels.
        width: Frame width in pixels.

    Returns:
        Whether each video is dynamic (B,), bool.
    """
    threshold = 6 * min(height, width) / 256
    return (pairs > threshold).sum(1) >= round(4 * frames / 16)


def flow(first: Tensor, second: Tensor, *, window: float = 2.5, iterations: int = 3) -> Tensor:
    """Optical flow (P, 2, H, W) in pixels, (x, y), from frames `first` to `second`, both (P, 3, H, W) in [0, 1].

    Coarse to fine; at each level the linearised brightness constancy of the three channels is solved in a Gaussian
    window of standard deviation `window` pixels, `iterations` times. Each frame's mean colour is removed, so that
    flickering brightness is no motion. Where the flow explains less than half of the change, it is set to 0: the change
    is noise, or an object that appears.
    """
    levels = [tuple(x - x.mean((2, 3), keepdim=True) for x in (first, second))]
    while min(levels[-1][0].shape[-2:]) >= 24:
        levels.append(tuple(functional.avg_pool2d(_blurred(x, 0.7), 2, ceil_mode=True) for x in levels[-1]))
    flows = torch.zeros(len(first), 2, *levels[-1][0].shape[-2:], device=first.device)
    for a, b in reversed(levels):
        ratio = torch.tensor([a.shape[-1] / flows.shape[-1], a.shape[-2] / flows.shape[-2]], device=first.device)
        flows = _resized(flows, *a.shape[-2:]) * ratio.view(1, 2, 1, 1)
        for _ in range(iterations):
            flows = flows + _update(a, _warped(b, flows), window)
    return explaining(flows, first, second, window=window)


def explaining(flows: Tensor, first: Tensor, second: Tensor, *, window: float = 2.5) -> Tensor:
    """`flows` (P, 2, H, W) where they explain at least half of the change of the frames (P, 3, H, W), and 0 elsewhere.

    The change is the squared difference of the frames without their mean colours, in a Gaussian window.
    """
    a, b = (x - x.mean((2, 3), keepdim=True) for x in (first, second))
    before = _blurred((b - a).square().sum(1, keepdim=True), window)
    after = _blurred((_warped(b, flows) - a).square().sum(1, keepdim=True), window)
    return flows * (after < 0.5 * before - 1e-5)


def _update(a: Tensor, b: Tensor, window: float) -> Tensor:
    """One step of the flow (P, 2, H, W) from `a` to `b`, at most one pixel in each direction."""
    mean = (a + b) / 2
    padded = functional.pad(mean, (1, 1, 1, 1), mode="replicate")
    dx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    dy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    dt = b - a
    products = torch.stack([(u * v).sum(1) for u, v in ((dx, dx), (dx, dy), (dy, dy), (dx, dt), (dy, dt))], dim=1)
    xx, xy, yy, xt, yt = _blurred(products, window).unbind(1)
    xx, yy = xx + 1e-3, yy + 1e-3  # keeps the flow of flat and noisy regions near 0
    determinant = xx * yy - xy * xy
    return torch.stack([xy * yt - yy * xt, xy * xt - xx * yt], dim=1).div(determinant.unsqueeze(1)).clamp(-1, 1)


def _warped(image: Tensor, flows: Tensor) -> Tensor:
    """`image` (P, C, H, W) sampled at x + flow, bilinearly, with repeated borders."""
    height, width = image.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=image.device), torch.arange(width, device=image.device), indexing="ij"
    )
    positions = torch.stack([(x + flows[:, 0]) / (width - 1), (y + flows[:, 1]) / (height - 1)], dim=-1) * 2 - 1
    return functional.grid_sample(image, positions, mode="bilinear", padding_mode="border", align_corners=True)


def _resized(image: Tensor, height: int, width: int) -> Tensor:
    if image.shape[-2:] == (height, width):
        return image
    return functional.interpolate(image, (height, width), mode="bilinear", align_corners=False, antialias=True)


def _blurred(image: Tensor, deviation: float) -> Tensor:
    """Gaussian blur with repeated borders, separable, window cut at 2.5 standard deviations."""
    radius = min(max(1, round(2.5 * deviation)), min(image.shape[-2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offsets / deviation) ** 2)
    kernel = kernel / kernel.sum()
    channels = image.shape[1]
    for shape, pad in (((1, -1), (radius, radius, 0, 0)), ((-1, 1), (0, 0, radius, radius))):
        padded = functional.pad(image, pad, mode="replicate")
        image = functional.conv2d(padded, kernel.view(1, 1, *shape).repeat(channels, 1, 1, 1), groups=channels)
    return image
