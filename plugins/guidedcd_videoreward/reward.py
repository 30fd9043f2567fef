"""VideoReward (Liu et al., arXiv:2501.13918) as a reward: visual quality, motion quality and text alignment of a video.

Legend: B videos, F frames, H/W pixels, K reward tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from guidedcd.devices import dtype_of_short, tensor_like
from guidedcd.errors import GuidedCDError
from guidedcd.models.checkpoints.loading import architecture
from guidedcd_videoreward import VideoRewardConfig
from guidedcd_videoreward.chat import ChatTokens, PlaceholderChat
from guidedcd_videoreward.checkpoint import Release, find_release, merged_weights
from guidedcd_videoreward.model import FULL, VideoRewardModel, load_videoreward
from guidedcd_videoreward.patches import Preparation
from guidedcd_videoreward.protocol import PAIR

RELEASED_MIN_PIXELS, RELEASED_MAX_PIXELS = 100_352, 200_704
RELEASED_NORMALISATION = ((3.6757, 2.2476), (1.1646, 1.3811), (2.8105, 2.5121))


def load(config: VideoRewardConfig, release: Release | None) -> tuple[VideoRewardModel, ChatTokens | PlaceholderChat]:
    """The network and its tokenizer; without a release both have no content, for a plan."""
    sizes = architecture(config.arch, FULL, "videoreward")
    context = sizes.get("max_position_embeddings", FULL["max_position_embeddings"])
    dtype = dtype_of_short(config.dtype)
    chat: ChatTokens | PlaceholderChat
    if release is None:
        model, chat = load_videoreward(sizes, None, dtype=dtype), PlaceholderChat(context)
    else:
        tokens, state = ChatTokens(release.tokenizer, context), merged_weights(release)
        outputs = len(state["rm_head.weight"]) if "rm_head.weight" in state else 1
        if outputs not in (1, 3):
            raise GuidedCDError(f"videoreward: {release.weights}: rm_head.weight has {outputs} rows, not 1 or 3.")
        model, chat = load_videoreward(sizes, state, vocabulary=tokens.size, outputs=outputs, dtype=dtype), tokens
    if config.gradient_checkpointing:
        model.gradient_checkpointing()
    return model, chat


class VideoReward(nn.Module):
    """The weighted sum of the three normalised scores; the released model's own overall score with weights of 1."""

    reads_motion = True

    def __init__(self, config: VideoRewardConfig, *, weights: bool = True) -> None:
        """Load the network.

        Raises:
            GuidedCDError: The checkpoint is missing, incomplete or of another network, or all weights are 0.
        """
        super().__init__()
        self.config = config
        self.factors = (config.quality, config.motion, config.alignment)
        if not any(self.factors):
            raise GuidedCDError(
                "reward 'videoreward': quality, motion and alignment are all 0; set one of them above 0."
            )
        release = find_release(config.path) if weights else None
        self.model, self.chat = load(config, release)
        vision = self.model.config.vision_config
        stated = release.max_pixels if release else None
        self.prepare = Preparation(
            config.min_pixels,
            config.max_pixels or stated or RELEASED_MAX_PIXELS,
            config.rounding,
            vision.patch_size,
            vision.spatial_merge_size,
        )
        self.normalisation = release.normalisation if release else RELEASED_NORMALISATION
        self.requires_grad_(False)
        self.eval()

    @property
    def max_tokens(self) -> int:
        """Tokens that a caption may have."""
        return self.chat.max_tokens

    def count_tokens(self, text: str) -> int:
        """Tokens of a caption."""
        return self.chat.count(text)

    @staticmethod
    def tokens(config: VideoRewardConfig) -> ChatTokens:
        """The tokenizer alone, without the network."""
        sizes = architecture(config.arch, FULL, "videoreward")
        context = sizes.get("max_position_embeddings", FULL["max_position_embeddings"])
        return ChatTokens(find_release(config.path).tokenizer, context)

    def use_graphs(self) -> None:
        """Replay the vision tower as CUDA graphs; the text has many lengths."""
        self.model.use_graphs()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode for any `mode`, since a reward is never trained."""
        return super().train(False)

    def raw(self, video: Tensor, captions: Sequence[str], heads: int = 3) -> Tensor:
        """The first `heads` raw scores (B, heads) of frames (B, F, 3, H, W) in [0, 1]: VQ, MQ, TA.

        Raises:
            GuidedCDError: The number of frames is odd, their shape cannot be used, or a caption has a reserved token.
        """
        if video.shape[1] % PAIR:
            raise GuidedCDError(
                f"reward 'videoreward' reads frames in pairs, not {video.shape[1]}; use an even number."
            )
        grid = self.prepare.grid(*(video.shape[i] for i in (1, 3, 4)))
        chats = [self.chat.chat(caption).until(heads) for caption in captions]
        patches = self.prepare(video)
        return self.model.raw(self.model.hidden(patches, [grid] * len(chats), chats, self.chat.pad))

    def forward(self, video: Tensor, captions: Sequence[str]) -> Tensor:
        """Frames (B, F, 3, H, W) in [0, 1], F even, and B captions -> rewards (B,), higher is better, float32.

        A score whose weight is 0 and that comes last is not computed: without `alignment`, no caption is read.

        Raises:
            ValueError: There are more or fewer captions than videos.
            GuidedCDError: See `raw`.
        """
        if len(captions) != len(video):
            raise ValueError(f"{len(video)} videos need as many captions, not {len(captions)}")
        heads = max(number for number, factor in enumerate(self.factors, start=1) if factor)
        with torch.autocast(video.device.type, enabled=False):
            raw = self.raw(video, captions, heads)
            scores = self.normalised(raw)
            return (scores * tensor_like(self.factors[:heads], scores)).sum(1)

    def normalised(self, raw: Tensor) -> Tensor:
        """Raw scores (B, K) -> scores in standard deviations from the mean of the checkpoint's training clips."""
        if not self.config.normalised:
            return raw
        mean, std = tensor_like(self.normalisation[: raw.shape[1]], raw).unbind(1)
        return (raw - mean) / std
