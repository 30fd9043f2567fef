"""InternVideo2 stage 2 (arXiv:2403.15377) as a reward: the cosine between a clip and its caption.

Legend: B videos, T frames, E width of the shared space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from guidedcd import pixels
from guidedcd.checkpoints.placing import assign, skeleton
from guidedcd.errors import GuidedCDError
from guidedcd.reward_models.texts import BertTokens, Remembered, Tokenizer, WorldTokens
from guidedcd.reward_models.weights import DTYPES, Published, architecture, embedded, fill, find, open_weights
from guidedcd_internv2 import InternV2Config
from guidedcd_internv2.model import FULL, InternVideo2, complete, is_unused

PUBLISHED = Published(
    repo="OpenGVLab/InternVideo2-Stage2_1B-224p-f4",
    files=("InternVideo2-stage2_1b-224p-f4.pt",),
    size="a few GB",
    note="accept its terms at huggingface.co/OpenGVLab/InternVideo2-Stage2_1B-224p-f4, hf auth login, then ",
)
VOCAB = Published(repo="google-bert/bert-large-uncased", files=("vocab.txt",), size="0.2 MB")


def load_internvideo2(
    sizes: Mapping[str, Any],
    state: Mapping[str, Tensor],
    what: str = "internv2",
    dtype: torch.dtype = torch.float32,
    gelu: str = "erf",
) -> InternVideo2:
    """A frozen InternVideo2 with the weights of `state` (the released names), strictly."""
    fusion = complete(sizes)["bert"]["fusion_layer"]
    model = skeleton(lambda: InternVideo2(sizes, gelu=gelu)).to(dtype)
    _constants(model)
    fill(model, state, what=what, unused=lambda key: is_unused(key, fusion))
    return model


def _constants(model: InternVideo2) -> None:
    """Values for BERT's buffers, which no checkpoint needs to hold."""
    for name, buffer in list(model.named_buffers()):
        if name.endswith("position_ids"):
            assign(model, name, torch.arange(buffer.shape[-1]).expand(buffer.shape).clone())
        elif name.endswith("token_type_ids"):
            assign(model, name, torch.zeros(buffer.shape, dtype=torch.long))


class InternV2(nn.Module):
    """Scores all given frames together, as one clip; any number of frames is read."""

    generator: torch.Generator | None
    """Draws the crop when set, which the engine does in training; None crops in the centre."""

    def __init__(self, config: InternV2Config) -> None:
        super().__init__()
        self.config, self.generator = config, None
        sizes, path, self._tokenizer = self._source(config)
        self.model = load_internvideo2(
            sizes, open_weights(path, "internv2"), "internv2", DTYPES[config.dtype], config.gelu
        )
        self.model.gradient_checkpointing(config.gradient_checkpointing)
        self._text = Remembered(lambda caption: self.text_features(*self._tokenizer([caption]))[0])

    @staticmethod
    def _source(config: InternV2Config) -> tuple[dict, Any, Tokenizer]:
        if config.path == "shapes":
            path, sizes = embedded("internv2")
            return sizes, path, WorldTokens(sizes.get("context") or complete(sizes)["max_txt_l"])
        sizes = architecture(config.arch, FULL, "internv2")
        path, vocab = find(config.path, PUBLISHED, "internv2"), find(config.vocab, VOCAB, "internv2")
        return sizes, path, BertTokens(vocab, complete(sizes)["max_txt_l"])

    @property
    def image_size(self) -> int:
        """Height and width of the video tower's input, pixels."""
        return self.model.image_size

    @property
    def max_tokens(self) -> int:
        """Context length, special tokens included."""
        return self._tokenizer.max_tokens

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` before truncation, special tokens included."""
        return self._tokenizer.count(text)

    def _apply(self, fn: Callable, recurse: bool = True) -> InternV2:
        self._text.clear()  # remembered features stay where they were computed
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> InternV2:
        """A reward is never trained: stays in eval mode whatever `mode` says."""
        return super().train(False)

    def text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids and mask (N, L) -> unit vectors (N, E), float32, without gradient."""
        device = self.model.text_proj.weight.device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return self.model.encode_text(ids.to(device), mask.to(device))

    def forward(self, video: Tensor, captions: Sequence[str]) -> Tensor:
        """Frames (B, T, 3, H, W) in [0, 1] and B captions -> scores (B,) in [-1, 1], higher is better, float32."""
        if len(captions) != len(video):
            raise GuidedCDError(f"{len(video)} videos need as many captions, not {len(captions)}")
        generator = self.generator if self.config.crop == "random" else None
        with torch.autocast(video.device.type, enabled=False):
            clip = pixels.internvideo2(video, self.image_size, self.config.antialias, generator=generator)
            features = self.model.encode_video(clip.to(self.model.vision_proj.weight.dtype))
            return (features * self._text(captions)).sum(-1)
