"""What every pretrained reward does: stay frozen, count tokens, remember captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from guidedcd.acceleration.cuda_graphs_backward import GradientReplay
from guidedcd.rewards.tokenizers import Remembered, Tokenizer


class FrozenReward(nn.Module):
    """A reward from a frozen network with a text tower; subclasses say how text and video become unit vectors.

    Legend: B videos, F frames, E width of the shared space.
    """

    def __init__(self, model: nn.Module, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.remembered = Remembered(self._encode)
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
        """A reward is never trained: stays in eval mode whatever `mode` says."""
        return super().train(False)

    def use_graphs(self) -> None:
        """Replay the image or video tower and its gradient as CUDA graphs, on a GPU, until the weights are moved."""
        if not isinstance(self.pixel_features, GradientReplay):
            # An attribute of the object shadows the method of the class.
            self.pixel_features = GradientReplay(self.pixel_features)  # type: ignore[method-assign, assignment]

    def _apply(self, fn: Callable, recurse: bool = True) -> Self:
        self.remembered.clear()  # its features stay where they were computed
        if isinstance(self.pixel_features, GradientReplay):
            self.pixel_features.recorded.clear()
        return super()._apply(fn, recurse)

    def _encode(self, caption: str) -> Tensor:
        ids, mask = (part.to(self.device) for part in self.tokenizer([caption]))
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return self.text_features(ids, mask)[0]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
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

        Computes in its own dtype whatever autocast is active; captions get no gradient.
        """
        if len(captions) != len(video):
            raise ValueError(f"{len(video)} videos need as many captions, not {len(captions)}")
        with torch.autocast(video.device.type, enabled=False):
            return self.scores(video, self.remembered(captions))
