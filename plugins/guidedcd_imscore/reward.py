"""Scorers of imscore 0.0.11 as rewards: the mean score of the frames, each with the caption of its video.

Legend: B videos, F frames, H/W pixels.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from functools import reduce
from typing import Any, Self

import attrs
import torch
from torch import Tensor, nn

from guidedcd.errors import GuidedCDError
from guidedcd.models.checkpoints.hub import why_not
from guidedcd_imscore import ImscoreConfig


@attrs.frozen
class Scorer:
    """A class of imscore, its weights, and how it reads captions."""

    module: str
    cls: str
    repo: str
    max_tokens: int = sys.maxsize
    """Tokens that its `score` keeps of a caption, special tokens included; no limit if it reads none."""
    tokenizer: str = ""
    """Where the model has its tokenizer; empty if it reads no captions."""
    is_mixing: bool = False
    """Whether a score depends on the captions of the rest of the batch."""


SCORERS = {
    "hpsv2": Scorer("hps", "HPSv2", "RE-N-Y/hpsv21", 77, "tokenizer"),
    "pickscore": Scorer("pickscore", "PickScorer", "RE-N-Y/pickscore", 77, "processor.tokenizer"),
    "mps": Scorer("mps", "MPS", "RE-N-Y/mpsv1", 77, "tokenizer", is_mixing=True),
    "imagereward": Scorer("imreward", "ImageReward", "RE-N-Y/ImageReward", 35, "blip.tokenizer"),
    "clipscore": Scorer("preference", "CLIPScore", "RE-N-Y/clipscore-vit-large-patch14", 77, "processor.tokenizer"),
    "siglip": Scorer("preference", "SiglipPreferenceScorer", "RE-N-Y/pickscore-siglip", 64, "processor.tokenizer"),
    "cyclereward": Scorer("cyclereward", "CycleReward", "NagaSaiAbhinay/CycleReward-Combo", 128, "blip.tokenizer"),
    "evalmuse": Scorer("evalmuse", "EvalMuse", "RE-N-Y/evalmuse", 32, "tokenizer"),
    # 512 tokens, of which the question around the caption takes about 60.
    "vqascore": Scorer("vqascore", "VQAScore", "RE-N-Y/clip-t5-xxl", 448, "tokenizer"),
    "laion-aesthetic": Scorer("aesthetic", "LAIONAestheticScorer", "RE-N-Y/laion-aesthetic"),
}
"""The scorers by the name of the option `model`."""


class Imscore(nn.Module):
    """The mean over frames of a scorer's `score(pixels, captions)`, in the scorer's own unit."""

    def __init__(self, config: ImscoreConfig) -> None:
        """Build the scorer with its weights.

        Raises:
            GuidedCDError: imscore is not installed, or cannot build the scorer.
        """
        super().__init__()
        if not config.model:
            raise GuidedCDError(f"reward 'imscore' needs a model: write imscore:MODEL, one of {', '.join(SCORERS)}.")
        self.scorer = SCORERS[config.model]
        self.what = f"reward 'imscore:{config.model}'"
        self.model = _build(self.scorer, config.path, self.what)
        self.requires_grad_(False)
        self.eval()

    @property
    def max_tokens(self) -> int:
        """Tokens that the scorer reads of a caption, special tokens included."""
        return self.scorer.max_tokens

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` before truncation, special tokens included; words if the scorer reads no captions."""
        if not self.scorer.tokenizer:
            return len(text.split())
        tokenizer = reduce(getattr, self.scorer.tokenizer.split("."), self.model)
        if hasattr(tokenizer, "encode") and not hasattr(tokenizer, "convert_tokens_to_ids"):  # open_clip's
            return len(tokenizer.encode(text)) + 2
        return len(tokenizer(text)["input_ids"])

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode for any `mode`, since a reward is never trained."""
        return super().train(False)

    def forward(self, video: Tensor, captions: Sequence[str]) -> Tensor:
        """Frames (B, F, 3, H, W) in [0, 1] and B captions -> mean scores (B,), higher is better, float32.

        Raises:
            GuidedCDError: The scorer returned another number of scores than there are frames.
        """
        with torch.autocast(video.device.type, enabled=False):
            pixels = video.float()
            if self.scorer.is_mixing:
                pairs = zip(pixels, captions, strict=True)
                return torch.stack([self._scores(frames, [caption] * len(frames)).mean() for frames, caption in pairs])
            repeated = [caption for caption in captions for _ in range(video.shape[1])]
            return self._scores(pixels.flatten(0, 1), repeated).view(video.shape[:2]).mean(1)

    def _scores(self, images: Tensor, captions: list[str]) -> Tensor:
        """Scores (N,) of images (N, 3, H, W), float32; imscore's shapes are (N,), (N, 1), or () for one image."""
        scores = self.model.score(images, captions)
        if scores.numel() != len(captions):
            shape = list(scores.shape)
            raise GuidedCDError(f"{self.what}: imscore returned scores of shape {shape} for {len(captions)} images.")
        return scores.reshape(-1).float()


def _build(scorer: Scorer, path: str, what: str) -> Any:
    """imscore's model with its weights.

    Raises:
        GuidedCDError: imscore is not installed, or cannot build it.
    """
    if importlib.util.find_spec("imscore") is None:
        raise GuidedCDError(
            f"{what} needs the package imscore: pip install imscore, or install it in another environment and use "
            "the reward 'external'."
        )
    try:
        module = importlib.import_module(f"imscore.{scorer.module}.model")
    except ImportError as error:
        raise GuidedCDError(f"{what}: imscore cannot be imported here ({error}); install what it requires.") from error
    source = scorer.repo if path == "auto" else path
    try:
        return getattr(module, scorer.cls).from_pretrained(source)
    except Exception as error:  # of the hub, transformers, open_clip or imscore itself
        text = " ".join(str(error).split())[:200]
        reason = why_not()
        remedy = f" ({reason}; its parts come from several repositories of the hub)" if reason else ""
        raise GuidedCDError(
            f"{what}: imscore cannot build {scorer.cls} from {source}: {type(error).__name__}: {text}{remedy}."
        ) from error
