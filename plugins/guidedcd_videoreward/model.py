"""The network of VideoReward: transformers' Qwen2-VL without its language head, and a linear head at three tokens.

Legend: B videos, P patches, D values of a patch, N video tokens, L positions, C width, K reward tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as nnf
import transformers
from torch import Tensor, nn
from transformers.models.qwen2_vl import modeling_qwen2_vl

from guidedcd.acceleration.blocks import recomputed
from guidedcd.acceleration.cuda_graphs_backward import GradientReplay
from guidedcd.devices import tensor_like
from guidedcd.models.checkpoints.loading import assign, describing, fill, skeleton
from guidedcd_videoreward import vision
from guidedcd_videoreward.chat import Chat
from guidedcd_videoreward.patches import Grid

VISION_THETA = 10000.0
"""Base of the rotary frequencies of the vision tower, which Qwen2-VL does not configure."""

FULL: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "hidden_size": 1536,
        "hidden_act": "quick_gelu",
        "mlp_ratio": 4,
        "num_heads": 16,
        "in_channels": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}
"""Qwen2-VL-2B-Instruct, as transformers' `Qwen2VLConfig`."""
FULL_VOCABULARY = 151660
"""Rows of the released embedding, which has the three reward tokens and no unused rows."""


class Towers(nn.Module):
    """The two parts of transformers' `Qwen2VLModel`, under its names; version 4.51 has no class with both."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        text = getattr(modeling_qwen2_vl, "Qwen2VLTextModel", None) or modeling_qwen2_vl.Qwen2VLModel
        self.visual = modeling_qwen2_vl.Qwen2VisionTransformerPretrainedModel(config.vision_config)
        self.language_model = text(config.get_text_config())


class VideoRewardModel(nn.Module):
    """Qwen2-VL with the reward head; its state dict has transformers' names since 4.52, and `rm_head.weight`.

    Args:
        sizes: Entries of `Qwen2VLConfig`, flat as in the config.json of Qwen2-VL-2B-Instruct.
        vocabulary: Rows of the embedding.
        outputs: Rows of the head: 1, shared by the three tokens, or 3, of which each token reads its own.
    """

    def __init__(self, sizes: Mapping[str, Any], vocabulary: int, outputs: int) -> None:
        super().__init__()
        config = transformers.Qwen2VLConfig.from_dict({**sizes, "vocab_size": vocabulary})
        self.config, self.text = config, config.get_text_config()
        self.model = Towers(config)
        self.recomputes = False
        self._rotations: dict[Any, tuple[Tensor, Tensor]] = {}
        self.rm_head = nn.Linear(self.text.hidden_size, outputs, bias=False)

    @property
    def visual(self) -> Any:
        """transformers' vision tower."""
        return self.model.visual

    def gradient_checkpointing(self) -> None:
        """Recompute the activations of every block in the backward pass."""
        self.recomputes = True
        for layer in self.model.language_model.layers:
            layer.forward = recomputed(layer.forward)

    def video_tokens(self, patches: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        """Patches (P, D) of videos, one after another -> their tokens (N, C) each, in the network's dtype."""
        tower, merge = self.visual, self.config.vision_config.spatial_merge_size
        kernel = tower.patch_embed.proj.weight
        # A convolution whose stride is its kernel is a matrix product.
        hidden = nnf.linear(patches.to(kernel.dtype), kernel.flatten(1))
        arguments = (*self._rotation(tuple(grids)), vision.runs(grids))
        output: Callable[..., Tensor] = vision.block_output
        if self.recomputes:
            output = recomputed(output)
        for block in tower.blocks:
            hidden = output(block, hidden, *arguments)
        return list(tower.merger(hidden).split([t * h * w // merge**2 for t, h, w in grids]))

    def _rotation(self, grids: tuple[Grid, ...]) -> tuple[Tensor, Tensor]:
        """The rotation of these grids. It is kept, because graphs read it and training has few sizes."""
        frequencies, merge = self.visual.rotary_pos_emb.inv_freq, self.config.vision_config.spatial_merge_size
        key = grids, frequencies.device, frequencies.dtype
        if key not in self._rotations:
            with torch.inference_mode(False):  # a later call may need it for a gradient
                self._rotations[key] = vision.rotation(grids, merge, frequencies)
        return self._rotations[key]

    def equal_videos(self, patches: Tensor) -> Tensor:
        """Patches (B, t, h, w, D) of videos of one size -> their tokens (B, N, C)."""
        batch, *grid = patches.shape[:4]
        return torch.stack(self.video_tokens(patches.flatten(0, 3), [(grid[0], grid[1], grid[2])] * batch))

    def use_graphs(self) -> None:
        """Replay the vision tower and its gradient as CUDA graphs on a GPU, until the weights move."""
        if not isinstance(self.equal_videos, GradientReplay):
            # An attribute of the object shadows the method of the class.
            self.equal_videos = GradientReplay(self.equal_videos)  # type: ignore[method-assign, assignment]

    def _apply(self, fn: Callable, recurse: bool = True) -> Self:
        self._rotations.clear()
        if isinstance(self.equal_videos, GradientReplay):
            self.equal_videos.recorded.clear()
        return super()._apply(fn, recurse)

    def hidden(self, patches: Tensor, grids: Sequence[Grid], chats: Sequence[Chat], pad: int = 0) -> Tensor:
        """The last hidden states (B, K, C) at the reward tokens that each text still contains.

        Args:
            patches: (P, D) of all videos.
            grids: One per video.
            chats: The text of each video.
            pad: The id that fills shorter texts on the right; it has no effect, because attention is causal.
        """
        if len(set(grids)) == 1:
            videos = list(self.equal_videos(patches.unflatten(0, (len(grids), *grids[0]))))
        else:
            videos = self.video_tokens(patches, grids)
        counts = [len(video) for video in videos]
        rows = [chat.ids(count) for chat, count in zip(chats, counts, strict=True)]
        longest = max(map(len, rows))
        ids = tensor_like([[*row, *[pad] * (longest - len(row))] for row in rows], patches, torch.long)
        language = self.model.language_model
        words = language.embed_tokens(ids)
        embeds = []
        for one, video, chat in zip(words, videos, chats, strict=True):
            start = len(chat.before)
            embeds.append(torch.cat([one[:start], video.to(one.dtype), one[start + len(video) :]]))
        # Plain positions in all three rows: the released model was trained and is evaluated without the 3D grid.
        positions = torch.arange(longest, device=patches.device).expand(3, len(rows), longest)
        output = language(inputs_embeds=torch.stack(embeds), position_ids=positions, use_cache=False)
        places = [
            [position for position in chat.positions(count) if position < len(row)]
            for chat, count, row in zip(chats, counts, rows, strict=True)
        ]
        index = tensor_like(places, patches, torch.long)[..., None].expand(-1, -1, words.shape[-1])
        return output.last_hidden_state.gather(1, index)

    def raw(self, hidden: Tensor) -> Tensor:
        """Hidden states (B, K, C) at the reward tokens -> raw scores (B, K), in the head's dtype."""
        scores = self.rm_head(hidden.to(self.rm_head.weight.dtype))
        if scores.shape[-1] == 1:
            return scores[..., 0]
        return torch.stack([scores[:, k, k] for k in range(scores.shape[1])], dim=1)


def load_videoreward(
    sizes: Mapping[str, Any],
    state: Mapping[str, Tensor] | None,
    *,
    vocabulary: int = FULL_VOCABULARY,
    outputs: int = 1,
    dtype: torch.dtype = torch.float32,
) -> VideoRewardModel:
    """A frozen network with the weights of `state` (see `checkpoint.merged_weights`), strictly; None loads none.

    The head stays float32: in bfloat16 it would quantise a score of 4 to 1/32.

    Raises:
        GuidedCDError: The sizes describe no such network, or keys or shapes differ.
    """
    with describing("videoreward"):
        model = skeleton(lambda: VideoRewardModel(sizes, vocabulary, outputs)).to(dtype)
    model.rm_head.float()
    if state is not None:
        set_frequencies(model)
    fill(model, state, what="videoreward")
    return model


def set_frequencies(model: VideoRewardModel) -> None:
    """Compute the rotary frequencies, which no checkpoint contains, in float32."""
    language, sizes = model.model.language_model, model.config.vision_config
    language.rotary_emb = type(language.rotary_emb)(config=language.config)
    width = sizes.embed_dim // sizes.num_heads // 2
    frequencies = 1.0 / (VISION_THETA ** (torch.arange(0, width, 2, dtype=torch.float32) / width))
    for tower, values in ((language, language.rotary_emb.inv_freq), (model.visual, frequencies)):
        for name, _ in list(tower.named_buffers()):  # some versions keep further copies
            if name.endswith("inv_freq"):
                assign(tower, name, values.clone())
