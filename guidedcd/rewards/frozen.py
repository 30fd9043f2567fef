"""The base class of pretrained rewards: frozen, with a tokenizer and a cache of caption features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from guidedcd.acceleration.cuda_graphs_backward import GradientReplay
from guidedcd.devices import to_device
from guidedcd.rewards.tokenizers import CaptionFeatures, Tokenizer


class FrozenReward(nn.Module):
    """A reward from a frozen network with a text tower; subclasses encode text and video as unit vectors.

    Legend: B videos, F frames, E width of the shared space.
    """

    def __init__(self, model: nn.Module, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.caption_features = CaptionFeatures(self._encode)
        self.requires_grad_(False)
        self.eval()

    @property
    def max_tokens(self) -> int:
        """Context length, special tokens included."""
        return self.tokenizer.max_tokens

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` before truncation, special tokens included."""
        return self.tokenizer.count(text)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode for any `mode`, since a reward is never trained."""
        return super().train(False)

    def use_graphs(self) -> None:
        """Replay the image or video tower and its gradient as CUDA graphs on a GPU, until the weights move."""
        if not isinstance(self.pixel_features, GradientReplay):
            # An attribute of the object shadows the method of the class.
            self.pixel_features = GradientReplay(self.pixel_features)  # type: ignore[method-assign, assignment]

    def _apply(self, fn: Callable, recurse: bool = True) -> Self:
        self.caption_features.clear()  # its features are on the former device
        if isinstance(self.pixel_features, GradientReplay):
            self.pixel_features.recorded.clear()
        return super()._apply(fn, recurse)

    def _encode(self, caption: str) -> Tensor:
        ids, mask = (to_device(tensor, self.device) for tensor in self.tokenizer([caption]))
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return self.text_features(ids, mask)[0]

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.model.parameters()).device

    def pixel_features(self, pixel_values: Tensor) -> Tensor:
        """Prepared images (N, 3, S, S) or clips (B, T, 3, S, S) -> unit vectors (N or B, E), float32."""
        raise NotImplementedError

    def text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids and mask (B, L) -> unit vectors (B, E), float32."""
        raise NotImplementedError

    def scores(self, video: Tensor, text: Tensor) -> Tensor:
        """Frames (B, F, 3, H, W) in [0, 1] and caption features (B, E) -> (B,), float32."""
        raise NotImplementedError

    def forward(self, video: Tensor, captions: Sequence[str]) -> Tensor:
        """Frames (B, F, 3, H, W) in [0, 1] and B captions -> scores (B,), higher is better, float32.

        It computes in its own dtype, also under autocast; captions get no gradient.

        Raises:
            ValueError: There are more or fewer captions than videos.
        """
        if len(captions) != len(video):
            raise ValueError(f"{len(video)} videos need as many captions, not {len(captions)}")
        with torch.autocast(video.device.type, enabled=False):
            return self.scores(video, self.caption_features(captions))
