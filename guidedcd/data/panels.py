"""Pictures made of videos: several side by side with titles, and heat maps.

Legend: F frames, H height, W width. Pixels are (F, 3, H, W), float in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GAP = 4
"""Pixels between videos."""
TITLE = 18
"""Height of the titles in pixels."""


def side_by_side(rows: Sequence[Sequence[Tensor]], titles: Sequence[str], *, enlarge: int = 1) -> Tensor:
    """A video (F, 3, H', W') with titles above columns of videos, on white.

    Args:
        rows: By row, one video (F, 3, H, W) for each title, all of one size.
        titles: The titles of the columns.
        enlarge: Repeat every pixel of the videos this often in both directions.
    """
    large = [[_enlarged(video, enlarge) for video in row] for row in rows]
    frames, _, height, width = large[0][0].shape
    sheet = torch.ones(frames, 3, TITLE + len(rows) * (height + GAP), len(titles) * (width + GAP) - GAP)
    sheet[:, :, :TITLE] = _title(titles, width, sheet.shape[-1])
    for number, row in enumerate(large):
        top = TITLE + number * (height + GAP)
        for column, video in enumerate(row):
            left = column * (width + GAP)
            sheet[:, :, top : top + height, left : left + width] = video
    return sheet


def _enlarged(video: Tensor, factor: int) -> Tensor:
    return video.detach().float().cpu().repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)


def _title(titles: Sequence[str], width: int, total: int) -> Tensor:
    """The titles as pixels (3, TITLE, total), each above its column."""
    image = Image.new("RGB", (total, TITLE), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    for column, text in enumerate(titles):
        draw.text((column * (width + GAP) + 2, 1), text, fill="black", font=font)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def heat(values: Tensor, largest: float) -> Tensor:
    """Magnitudes (F, H, W) as colours (F, 3, H, W) from black over red and yellow to white, which is `largest`."""
    level = (values.detach().float().cpu() / max(largest, torch.finfo(torch.float32).tiny)).clamp(0, 1) * 3
    return torch.stack([(level - band).clamp(0, 1) for band in range(3)], dim=1)
