"""Training the video judge to recognise motion: it learns to follow the object before it reads captions.

Trained on captions only, it recognises colours, shapes and sizes but stays at chance on directions: no single frame
shows them, and its position embeddings begin as small noise. So the position embeddings begin as sines, as in the
published model, and a temporary head predicts the object's position from the tokens and the pooled feature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from guidedcd_internv2.vision import VisionEncoder
from torch import Tensor, nn

from guidedcd_shapes import world

ALONE = 0.12
"""Share of the training before captions are used."""


@torch.no_grad()
def initialize_positions(tower: VisionEncoder) -> None:
    """Set the position embeddings of a `VisionEncoder` to sines and cosines of frame, row and column."""
    frames, grid, width = tower.frames, tower.grid, tower.pos_embed.shape[-1]
    time = width // 8 * 2
    axes = torch.meshgrid(*(torch.arange(n).float() for n in (frames, grid, grid)), indexing="ij")
    columns = [_sines(axis.flatten(), d) for axis, d in zip(axes, (time, *[(width - time) // 2] * 2), strict=True)]
    tower.pos_embed[0, 1:] = torch.cat(columns, 1).to(tower.pos_embed)


def _sines(position: Tensor, width: int) -> Tensor:
    angle = position[:, None] * 100.0 ** -(torch.arange(width // 2) / (width // 2))
    return torch.cat([angle.sin(), angle.cos()], 1)


class Tracker(nn.Module):
    """Predicts the first object's center: in each frame from its mean token, in all frames from the pooled feature."""

    def __init__(self, tower: VisionEncoder, pooled: int) -> None:
        super().__init__()
        self.frames = tower.frames
        self.local = nn.Linear(tower.pos_embed.shape[-1], 2)
        self.overall = nn.Linear(pooled, 2 * self.frames + len(world.MOTIONS))

    def forward(self, tokens: Tensor, pooled: Tensor, center: Tensor, motion: Tensor, objects: Tensor) -> Tensor:
        """The loss of the predictions, averaged over scenes with one object.

        Args:
            tokens: Tokens after the last block (B, 1 + T * patches, D).
            pooled: Pooled features (B, E).
            center: True centers in the T frames (B, T, 2), in pixels.
            motion: Index of world.MOTIONS (B,).
            objects: Number of objects (B,).
        """
        goal = (center / world.SIZE * 2 - 1).flatten(1)
        frames = tokens[:, 1:].unflatten(1, (self.frames, -1)).mean(2)
        position, kind = self.overall(pooled).float().split((goal.shape[1], len(world.MOTIONS)), 1)
        loss = nnf.cross_entropy(kind, motion, reduction="none")
        for prediction in (self.local(frames).float().flatten(1), position):
            loss = loss + 4 * nnf.smooth_l1_loss(prediction, goal, beta=0.1, reduction="none").mean(1)
        single = (objects == 1).float()
        return (loss * single).sum() / single.sum().clamp_min(1)
