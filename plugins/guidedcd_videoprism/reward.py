"""VideoPrism LvT (Zhao et al., arXiv:2402.13217): the cosine between a clip and its caption, by transformers' class.

Legend: B videos, F frames, E width of the shared space.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as nnf
import transformers
from torch import Tensor

from guidedcd.devices import dtype_of_short
from guidedcd.errors import GuidedCDError
from guidedcd.models.checkpoints.hub import missing
from guidedcd.models.checkpoints.loading import skeleton
from guidedcd.rewards import pixels
from guidedcd.rewards.frozen import FrozenReward
from guidedcd.rewards.tokenizers import PlaceholderTokens, Tokenizer
from guidedcd_videoprism import VideoPrismConfig

REPO = "google/videoprism-lvt-base-f16r288"
NEEDED = "5.13"
"""The first version of transformers with VideoPrism."""


class VideoPrismTokens:
    """The tokenizer of a folder or repository, padded and cut to the length of the text tower."""

    def __init__(self, source: str, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._tokenizer = _loaded("AutoTokenizer", source)

    def count(self, text: str) -> int:
        """Tokens of `text` before truncation; the tower adds its own summary token."""
        return len(self._tokenizer(text)["input_ids"])

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, max_tokens)."""
        encoded = self._tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        return encoded["input_ids"], encoded["attention_mask"]


class VideoPrism(FrozenReward):
    """Cosine of a clip of any number of frames with its caption, in [-1, 1]."""

    model: Any
    """transformers' `VideoPrismClipModel`, which older versions lack."""

    def __init__(self, config: VideoPrismConfig, *, weights: bool = True) -> None:
        """Load the network.

        Raises:
            GuidedCDError: transformers is too old, or the weights are missing, incomplete or of another network.
        """
        sizes = _sizes(config)
        limit = sizes.text_config.max_position_embeddings
        tokenizer: Tokenizer
        if weights:
            model, tokenizer = _network(config), VideoPrismTokens(_source(config), limit)
        else:
            model, tokenizer = skeleton(lambda: transformers.VideoPrismClipModel(sizes)), PlaceholderTokens(limit)
        super().__init__(model.to(dtype_of_short(config.dtype)), tokenizer)
        self.config = config

    @staticmethod
    def tokens(config: VideoPrismConfig) -> Tokenizer:
        """The tokenizer alone, without the network."""
        return VideoPrismTokens(_source(config), _sizes(config).text_config.max_position_embeddings)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the video tower's input, pixels."""
        size = self.model.config.vision_config.image_size
        return (size, size) if isinstance(size, int) else tuple(size)

    def pixel_features(self, pixel_values: Tensor) -> Tensor:
        """Prepared clips (B, F, 3, H, W) in [0, 1] -> unit vectors (B, E), float32."""
        dtype = next(self.model.parameters()).dtype
        interpolates = pixel_values.shape[1] != self.model.config.vision_config.num_frames
        output = self.model.get_video_features(pixel_values.to(dtype), interpolate_pos_encoding=interpolates)
        return nnf.normalize(output.pooler_output.float().flatten(1), dim=-1)  # (B, 1, E) of one query

    def text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids and mask (B, L) -> unit vectors (B, E), float32."""
        output = self.model.get_text_features(input_ids=ids, attention_mask=mask)
        return nnf.normalize(output.pooler_output.float().flatten(1), dim=-1)

    def scores(self, video: Tensor, text: Tensor) -> Tensor:
        """Frames (B, F, 3, H, W) in [0, 1] and caption features (B, E) -> cosines (B,)."""
        # transformers resizes images of 8 bits, which stay within [0, 1].
        clips = pixels.resize(video, *self.image_size).clamp(0, 1)
        return (self.pixel_features(clips) * text).sum(-1)


def _source(config: VideoPrismConfig) -> str:
    return REPO if config.path == "auto" else config.path


def _sizes(config: VideoPrismConfig) -> Any:
    """transformers' config of the network.

    Raises:
        GuidedCDError: transformers has no VideoPrism, or the folder no config of one.
    """
    if importlib.util.find_spec("transformers.models.videoprism") is None:
        raise GuidedCDError(
            f"reward 'videoprism' needs transformers {NEEDED} or later, and {transformers.__version__} is installed: "
            f"pip install 'transformers>={NEEDED}'."
        )
    if config.path == "auto" and missing(REPO):
        return transformers.VideoPrismConfig()  # the sizes of REPO
    return _loaded("VideoPrismConfig", _source(config))


def _network(config: VideoPrismConfig) -> Any:
    source = _source(config)
    model, report = _loaded("VideoPrismClipModel", source, use_safetensors=True, output_loading_info=True)
    wrong = {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys and kind.endswith("_keys")}
    if wrong:
        kind, keys = next(iter(wrong.items()))
        raise GuidedCDError(
            f"reward 'videoprism': {source} has no weights of VideoPrismClipModel: {kind.replace('_', ' ')} "
            f"{', '.join(keys[:3])}. Use a repository 'videoprism-lvt-*' in transformers' format."
        )
    return model


def _loaded(cls: str, source: str, **options: Any) -> Any:
    """An object of transformers' class from a folder, or from the hub and its cache.

    Raises:
        GuidedCDError: It cannot be loaded.
    """
    reason = missing(source)  # also switches the hub off where it cannot be reached
    try:
        return getattr(transformers, cls).from_pretrained(source, **options)
    except Exception as error:  # of the hub, of safetensors or of transformers
        text = reason or " ".join(str(error).split())[:200]
        remedy = f"To get it: hf download {REPO} --local-dir FOLDER; then --rewards videoprism:FOLDER"
        raise GuidedCDError(f"reward 'videoprism': {source} cannot be loaded ({text}). {remedy}.") from error
