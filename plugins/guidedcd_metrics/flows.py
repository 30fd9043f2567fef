"""Optical flow by other means than the classical one of `motion`: OpenCV's DIS, and RAFT with weights by path.

Legend: P pairs of frames, H and W their size in pixels.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from guidedcd.errors import GuidedCDError, shortened
from guidedcd.models.checkpoints.reading import open_state

Flow = Callable[[Tensor, Tensor], Tensor]
"""From frames `first` and `second`, both (P, 3, H, W) in [0, 1], to the flow (P, 2, H, W), (x, y) in pixels."""

SMALL = 256
"""Frames whose short side is smaller are enlarged for DIS, whose patches have 8 pixels."""
ITERATIONS = 20
"""Iterations of RAFT, as in VBench."""
SIDE = 128
"""The smallest side that RAFT takes."""


def has_opencv() -> bool:
    """Whether OpenCV is installed; it is not imported."""
    return importlib.util.find_spec("cv2") is not None


def dis() -> Flow:
    """Dense inverse search (Kroeger et al., 2016) of OpenCV, on grey frames; needs no weights.

    Small frames are enlarged twice, on which it is weak otherwise.

    Raises:
        GuidedCDError: OpenCV is not installed.
    """
    if not has_opencv():
        raise GuidedCDError(
            "the flow 'dis' needs OpenCV, which is not installed: pip install 'guidedcd[flow]', or use "
            "--metrics.dynamic-degree.flow classical."
        )
    cv2: Any = importlib.import_module("cv2")  # its type hints lack some functions

    def flow(first: Tensor, second: Tensor) -> Tensor:
        factor = 2 if min(first.shape[-2:]) < SMALL else 1
        before, after = (_grey(frames, factor) for frames in (first, second))
        estimator = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        flows = np.stack([estimator.calc(a, b, None) for a, b in zip(before, after, strict=True)])
        result = torch.from_numpy(flows).permute(0, 3, 1, 2)
        return functional.avg_pool2d(result, factor) / factor if factor > 1 else result

    return flow


def _grey(frames: Tensor, factor: int) -> np.ndarray:
    """Luminance (P, H factor, W factor), uint8, of frames (P, 3, H, W) in [0, 1]."""
    grey = (frames.cpu() * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True).clamp(0, 1)
    if factor > 1:
        grey = functional.interpolate(grey, scale_factor=factor, mode="bilinear", align_corners=False)
    return np.ascontiguousarray((grey[:, 0] * 255).round().to(torch.uint8).numpy())


def raft(path: Path) -> Flow:
    """RAFT (Teed and Deng, 2020) with the architecture and file format of torchvision's `raft_large`.

    Args:
        path: Its weights, a .pth or .safetensors file with torchvision's names.

    Raises:
        GuidedCDError: torchvision is not installed, or the file is no such file.
    """
    try:
        from torchvision.models.optical_flow import raft_large
    except ImportError:
        raise GuidedCDError("the flow 'raft' needs torchvision: pip install 'guidedcd[flow]'.") from None
    network = raft_large(weights=None).eval().requires_grad_(False)
    _load(network, path)

    def flow(first: Tensor, second: Tensor) -> Tensor:
        height, width = first.shape[-2:]
        below, right = (max((-side) % 8, SIDE - side) for side in (height, width))
        padded = [functional.pad(x.float(), (0, right, 0, below), mode="replicate") for x in (first, second)]
        network.to(first.device)
        return network(*(2 * frames - 1 for frames in padded), num_flow_updates=ITERATIONS)[-1][..., :height, :width]

    return flow


def _load(network: torch.nn.Module, path: Path) -> None:
    """Load the weights of a file.

    Raises:
        GuidedCDError: It is missing, damaged, or of another network.
    """
    if not path.is_file():
        raise GuidedCDError(f"there are no weights of RAFT at {path}.")
    state = open_state(path)
    try:
        network.load_state_dict({name: state[name] for name in state})
    except RuntimeError as error:
        text = shortened(" ".join(str(error).split()), 200)
        raise GuidedCDError(
            f"{path} has no weights of torchvision's raft_large: {text}. The official raft-things.pth has other names; "
            "use torchvision's file."
        ) from error
