"""A reward from a CLIP-like model: the mean over frames of the cosine between a frame and its caption.

Legend: B videos, F frames, E width of the shared space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import open_clip
import torch
import torch.nn.functional as nnf
from open_clip.model import CLIP, convert_weights_to_lp
from open_clip.transformer import Transformer
from torch import Tensor, nn

from guidedcd.acceleration.blocks import recomputed
from guidedcd.devices import dtype_of_short
from guidedcd.errors import GuidedCDError
from guidedcd.models.checkpoints.hub import Published, find
from guidedcd.models.checkpoints.loading import architecture, describing, fill, open_weights, skeleton
from guidedcd.plugins.configs import RewardModelConfig
from guidedcd.rewards.frozen import FrozenReward
from guidedcd.rewards.pixels import CLIP_MEAN, CLIP_STD
from guidedcd.rewards.tokenizers import ClipTokens, Tokenizer

Prepare = Callable[[Tensor, int, bool], Tensor]
"""Images (..., 3, H, W) in [0, 1], size, antialias -> normalised (..., 3, size, size), float32."""


def build_clip(sizes: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> CLIP:
    """open_clip's CLIP of these sizes ("embed_dim", "vision_cfg", "text_cfg"), with fresh weights.

    In low precision, matrices have `dtype`, while norms, embeddings and position tables stay float32.
    """
    arguments = {key: sizes[key] for key in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu") if key in sizes}
    model = CLIP(**arguments, cast_dtype=dtype)
    if dtype != torch.float32:
        convert_weights_to_lp(model, dtype)
    _tokens_first(model.visual)
    return model


def _tokens_first(tower: nn.Module) -> None:
    """Make an image tower compute on (L, N, D), the layout inside PyTorch's attention.

    On (N, L, D) it transposes and multiplies a frozen weight with each position separately: L small matrix products
    instead of one.
    """
    stack = getattr(tower, "transformer", None)
    if isinstance(stack, Transformer) and all(type(b.attn) is nn.MultiheadAttention for b in stack.resblocks):
        stack.batch_first = False
        for block in stack.resblocks:
            block.attn.batch_first = False


def recompute_blocks(tower: nn.Module) -> None:
    """Recompute the activations of an image tower's transformer blocks in the backward pass; a ResNet keeps all.

    open_clip's own switch also restores the state of random numbers, which a CUDA graph may not contain.
    """
    for block in getattr(getattr(tower, "transformer", None), "resblocks", ()):
        block.forward = recomputed(block.forward)


def load_clip(
    sizes: Mapping[str, Any], state: Mapping[str, Tensor] | None, what: str, dtype: torch.dtype = torch.float32
) -> CLIP:
    """A frozen CLIP with the weights of `state` (open_clip's names), strictly; None leaves it without weights."""
    with describing(what):
        model = skeleton(lambda: build_clip(sizes, dtype))
    if model.attn_mask is not None:
        length = model.attn_mask.shape[-1]
        model.attn_mask = torch.full((length, length), float("-inf")).triu_(1)
    fill(model, state, what=what)
    return model


@attrs.frozen(kw_only=True)
class Source:
    """The sizes, tokenizer and weights of a network; files are opened on demand."""

    sizes: Mapping[str, Any]
    """See `build_clip`."""
    tokenizer: Callable[[], Tokenizer]
    """Creates the tokenizer."""
    file: Callable[[], Path]
    """Returns the file of the weights."""


def released(config: RewardModelConfig, published: Published, what: str) -> Source:
    """The network of a published file, or of the file at `config.path`, with the sizes of `config.arch`.

    Raises:
        GuidedCDError: The sizes are unknown.
    """
    sizes = architecture(config.arch, open_clip.get_model_config("ViT-H-14"), what, named)
    return Source(
        sizes=sizes,
        tokenizer=lambda: ClipTokens(sizes["text_cfg"].get("context_length", 77)),
        file=lambda: find(config.path, published, what),
    )


def named(arch: str) -> dict[str, Any] | None:
    """open_clip's sizes of a name such as ViT-B-32, or ViT-B-32/TAG with a pretrained tag; None if unknown.

    Raises:
        GuidedCDError: The model is not a standard CLIP, or the tag is unknown or needs other pixels.
    """
    name, _, tag = arch.partition("/")
    if name not in open_clip.list_models():
        return None
    sizes = open_clip.get_model_config(name)
    if sizes.get("custom_text") or {"timm_model_name", "hf_model_name"} & {*sizes["vision_cfg"], *sizes["text_cfg"]}:
        raise GuidedCDError(f"open_clip's {name} has other towers than CLIP's own; only those are read")
    if tag:
        pretrained = _pretrained(name, tag)
        sizes["quick_gelu"] = pretrained.get("quick_gelu", sizes.get("quick_gelu", False))
    return sizes


def published_as(arch: str) -> Published:
    """The published file of open_clip's NAME/TAG.

    Raises:
        GuidedCDError: There is no tag, or the hub does not have the weights.
    """
    name, _, tag = arch.partition("/")
    pretrained = _pretrained(name, tag)
    repo = pretrained.get("hf_hub", "").strip("/")
    if repo.count("/") != 1:
        raise GuidedCDError(f"open_clip's {arch} is not on the Hugging Face hub as a whole: give its file as the path")
    files = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    return Published(repo=repo, files=files, size=f"open_clip's {name}")


def _pretrained(name: str, tag: str) -> dict[str, Any]:
    pretrained = open_clip.get_pretrained_cfg(name, tag)
    if not pretrained:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise GuidedCDError(f"open_clip's {name} has no weights '{tag}'; write {name}/TAG with one of: {tags}")
    if (tuple(pretrained.get("mean", CLIP_MEAN)), tuple(pretrained.get("std", CLIP_STD))) != (CLIP_MEAN, CLIP_STD):
        raise GuidedCDError(f"open_clip's {name}/{tag} wants pixels of another mean than CLIP's; it is not read")
    return pretrained


class ImageTextReward(FrozenReward):
    """Scores frames one by one against the video's caption, in [-1, 1], without logit_scale.

    Args:
        config: Options of the reward.
        what: Name of the component, for errors.
        source: Its sizes, tokenizer and weights.
        prepare: Preparation of pixels for the image tower.
        tiled: Pair captions with frames as the released training code does: frame i, counted over all videos, with
            caption i modulo B. This differs from each video's own caption if B > 1 and F > 1.
        weights: False opens no file and leaves the network on the meta device, for planning.
    """

    model: CLIP

    def __init__(
        self,
        config: RewardModelConfig,
        *,
        what: str,
        source: Source,
        prepare: Prepare,
        tiled: bool = False,
        weights: bool = True,
    ) -> None:
        state = open_weights(source.file(), what) if weights else None
        model = load_clip(source.sizes, state, what, dtype_of_short(config.dtype))
        super().__init__(model, source.tokenizer())
        if config.gradient_checkpointing:
            recompute_blocks(self.model.visual)
        self.config, self.prepare, self.tiled = config, prepare, tiled

    @property
    def image_size(self) -> int:
        """Height and width of the image tower's input, pixels."""
        return self.model.visual.image_size[0]

    def pixel_features(self, pixel_values: Tensor) -> Tensor:
        """Prepared images (N, 3, S, S) -> unit vectors (N, E), float32."""
        dtype = self.model.visual.conv1.weight.dtype
        return nnf.normalize(self.model.encode_image(pixel_values.to(dtype)).float(), dim=-1)

    def text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids (B, L) -> unit vectors (B, E), float32; attention is causal, so the mask does not matter."""
        return nnf.normalize(self.model.encode_text(ids).float(), dim=-1)

    def scores(self, video: Tensor, text: Tensor) -> Tensor:
        """Frames (B, F, 3, H, W) in [0, 1] and caption features (B, E) -> mean cosine over frames (B,)."""
        batch, frames = video.shape[:2]
        pixels = self.prepare(video.flatten(0, 1), self.image_size, self.config.antialias)
        text = text.repeat(frames, 1) if self.tiled else text.repeat_interleave(frames, dim=0)
        return (self.pixel_features(pixels) * text).sum(-1).view(batch, frames).mean(1)
