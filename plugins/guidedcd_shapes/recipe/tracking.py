"""What teaches the video judge to read motion: it first learns to follow the object, and reads captions afterwards.

Trained on captions alone it tells colours, shapes and sizes apart and stays at chance on directions: no single frame
shows them, and its positions start as small noise beside what the patches show. So positions start as sines, as in the
published model, and a head that is thrown away later says from tokens and pooled feature where the object is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from guidedcd_shapes import world

ALONE = 0.12
"""The first share of the training, without captions."""


@torch.no_grad()
def place(tower: nn.Module) -> None:
    """Start the positions of a `VisionEncoder` as sines and cosines of frame, row and column."""
    frames, grid, width = tower.frames, tower.grid, tower.pos_embed.shape[-1]
    time = width // 8 * 2
    axes = torch.meshgrid(*(torch.arange(n).float() for n in (frames, grid, grid)), indexing="ij")
    parts = [_sines(axis.flatten(), d) for axis, d in zip(axes, (time, *[(width - time) // 2] * 2), strict=True)]
    tower.pos_embed[0, 1:] = torch.cat(parts, 1).to(tower.pos_embed)


def _sines(place: Tensor, width: int) -> Tensor:
    angle = place[:, None] * 100.0 ** -(torch.arange(width // 2) / (width // 2))
    return torch.cat([angle.sin(), angle.cos()], 1)


class Tracker(nn.Module):
    """Says where the first object is: in each frame from its tokens' mean, in all from the pooled feature."""

    def __init__(self, tower: nn.Module, pooled: int) -> None:
        super().__init__()
        self.frames = tower.frames
        self.local = nn.Linear(tower.pos_embed.shape[-1], 2)
        self.overall = nn.Linear(pooled, 2 * self.frames + len(world.MOTIONS))

    def forward(self, tokens: Tensor, pooled: Tensor, center: Tensor, motion: Tensor, objects: Tensor) -> Tensor:
        """The loss, averaged over scenes with one object.

        Args:
            tokens: After the last block (B, 1 + T * patches, D).
            pooled: (B, E).
            center: Where the object is in the frames shown (B, T, 2), pixels.
            motion: Index of world.MOTIONS (B,).
            objects: How many there are (B,).
        """
        goal = (center / world.SIZE * 2 - 1).flatten(1)
        frames = tokens[:, 1:].unflatten(1, (self.frames, -1)).mean(2)
        where, kind = self.overall(pooled).float().split((goal.shape[1], len(world.MOTIONS)), 1)
        loss = nnf.cross_entropy(kind, motion, reduction="none")
        for guess in (self.local(frames).float().flatten(1), where):
            loss = loss + 4 * nnf.smooth_l1_loss(guess, goal, beta=0.1, reduction="none").mean(1)
        single = (objects == 1).float()
        return (loss * single).sum() / single.sum().clamp_min(1)
