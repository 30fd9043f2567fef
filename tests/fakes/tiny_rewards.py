"""Tiny random reward models in the published file formats."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from guidedcd_clip import CLIPConfig
from guidedcd_clip.reward import CLIPScore
from guidedcd_hps import HPSConfig
from guidedcd_hps.reward import HPS
from guidedcd_internv2 import InternV2Config
from guidedcd_internv2.model import InternVideo2
from guidedcd_internv2.reward import InternV2
from safetensors.torch import save_file
from torch import nn

from guidedcd.rewards.image_text import build_clip
from guidedcd.testing.tiny_networks import IMAGE_TEXT_SIZES, VIDEO_TEXT_SIZES

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "cat", "walk", "##s", "cafe", "!", "猫"]


def write(folder: Path) -> Path:
    """Write tiny random models in the published formats, their sizes and a vocabulary."""
    torch.manual_seed(0)
    image_text, video_text = build_clip(IMAGE_TEXT_SIZES), InternVideo2(VIDEO_TEXT_SIZES)
    for model in (image_text, video_text):
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    torch.save({"state_dict": image_text.state_dict(), "iterations": 3, "name": "x"}, folder / "clip.pt")
    torch.save(image_text.state_dict(), folder / "clip.bin")
    save_file({k: v.contiguous() for k, v in image_text.state_dict().items()}, folder / "clip.safetensors")
    torch.save({"module": video_text.state_dict()}, folder / "video.pt")
    (folder / "clip.json").write_text(json.dumps(IMAGE_TEXT_SIZES))
    (folder / "video.json").write_text(json.dumps(VIDEO_TEXT_SIZES))
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    return folder


def image_text(files: Path, kind: type = HPS, config: type = HPSConfig, **options):
    """A tiny image-text reward."""
    return kind(config(path=str(files / "clip.pt"), arch=str(files / "clip.json"), **options))


def video_text(files: Path, **options) -> InternV2:
    """A tiny video-text reward."""
    paths = {"path": str(files / "video.pt"), "arch": str(files / "video.json"), "vocab": str(files / "vocab.txt")}
    return InternV2(InternV2Config(**paths, **options))


def video(frames: int = 4, height: int = 20, width: int = 32, batch: int = 2) -> torch.Tensor:
    """Noise (batch, frames, 3, height, width) in [0, 1]."""
    return torch.rand(batch, frames, 3, height, width, generator=torch.Generator().manual_seed(1))


BUILDERS = {
    "hps": image_text,
    "clip": lambda files, **options: image_text(files, CLIPScore, CLIPConfig, **options),
    "internv2": video_text,
}
CAPTIONS = ["a red cat", "walks!"]
