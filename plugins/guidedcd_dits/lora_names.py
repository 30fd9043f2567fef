"""Names of the layers of video transformers in LoRA files: diffusers', the original repositories', and kohya's.

The original names ("native") are those of the models' own repositories, ComfyUI, LightX2V, musubi-tuner and DiffSynth.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cached_property

import attrs

from guidedcd.errors import GuidedCDError


@attrs.frozen(slots=False)
class Family:
    """The layer names of one family of transformers."""

    title: str
    """For messages."""
    blocks: str
    """Name of the list of blocks, the same in both spellings."""
    inner: Mapping[str, str]
    """diffusers' names of a block's layers and parameters by native name."""
    outer: Mapping[str, str]
    """The same outside of the blocks."""
    has_native_form: bool = True
    """Whether programs other than diffusers read one common spelling of LoRA files."""
    down: str = "lora_down"
    """Name of the matrix that is applied first, in native files."""
    up: str = "lora_up"
    """Name of the matrix that is applied second."""

    @cached_property
    def _inner_back(self) -> dict[str, str]:
        return {diffusers: native for native, diffusers in self.inner.items()}

    @cached_property
    def _outer_back(self) -> dict[str, str]:
        return {diffusers: native for native, diffusers in self.outer.items()}

    def to_diffusers(self, name: str) -> str:
        """diffusers' name of a native one.

        Raises:
            KeyError: It is none.
        """
        return self._renamed(name, self.inner, self.outer)

    def to_native(self, name: str) -> str:
        """The native name of one of diffusers'.

        Raises:
            KeyError: It is none.
        """
        return self._renamed(name, self._inner_back, self._outer_back)

    def from_kohya(self, name: str) -> str:
        """diffusers' name of a native or diffusers name whose dots are underscores.

        Raises:
            KeyError: It is none.
        """
        match = re.fullmatch(rf"{self.blocks}_(\d+)_(.+)", name)
        inner, outer = self._kohya
        return f"{self.blocks}.{match[1]}.{inner[match[2]]}" if match else outer[name]

    def to_kohya(self, name: str) -> str:
        """The native name with underscores of one of diffusers'.

        Raises:
            KeyError: It is none.
        """
        return self.to_native(name).replace(".", "_")

    @cached_property
    def _kohya(self) -> tuple[dict[str, str], dict[str, str]]:
        """diffusers' names by names with underscores, native ones first: they cannot be split at underscores."""
        tables = []
        for table in (self.inner, self.outer):
            joined = {diffusers.replace(".", "_"): diffusers for diffusers in table.values()}
            tables.append(joined | {native.replace(".", "_"): diffusers for native, diffusers in table.items()})
        return tables[0], tables[1]

    def _renamed(self, name: str, inner: Mapping[str, str], outer: Mapping[str, str]) -> str:
        match = re.fullmatch(rf"({self.blocks}\.\d+)\.(.+)", name)
        return f"{match[1]}.{inner[match[2]]}" if match else outer[name]


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def _under(native: str, diffusers: str, names: Mapping[str, str]) -> dict[str, str]:
    return {f"{native}.{key}": f"{diffusers}.{value}" for key, value in names.items()}


_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"} | _same("norm_q", "norm_k")
_IMAGE = {"k_img": "add_k_proj", "v_img": "add_v_proj", "norm_k_img": "norm_added_k"}
_LTX_ATTENTION = _same("to_q", "to_k", "to_v", "to_out.0") | {"q_norm": "norm_q", "k_norm": "norm_k"}
_FEED_FORWARD = _same("net.0.proj", "net.2")

WAN = Family(
    title="Wan",
    blocks="blocks",
    inner={
        **_under("self_attn", "attn1", _ATTENTION),
        **_under("cross_attn", "attn2", _ATTENTION | _IMAGE),
        "ffn.0": "ffn.net.0.proj",
        "ffn.2": "ffn.net.2",
        "norm3": "norm2",  # diffusers numbers the norms in the order of the computation
        "modulation": "scale_shift_table",
    },
    outer={
        "patch_embedding": "patch_embedding",
        "text_embedding.0": "condition_embedder.text_embedder.linear_1",
        "text_embedding.2": "condition_embedder.text_embedder.linear_2",
        "time_embedding.0": "condition_embedder.time_embedder.linear_1",
        "time_embedding.2": "condition_embedder.time_embedder.linear_2",
        "time_projection.1": "condition_embedder.time_proj",
        "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
        "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
        "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
        "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
        "head.head": "proj_out",
        "head.modulation": "scale_shift_table",
    },
)
"""Wan 2.1 and 2.2."""

LTX = Family(
    title="LTX-Video",
    blocks="transformer_blocks",
    inner={
        **_under("attn1", "attn1", _LTX_ATTENTION),
        **_under("attn2", "attn2", _LTX_ATTENTION),
        **_under("ff", "ff", _FEED_FORWARD),
        **_same("scale_shift_table"),
    },
    outer={
        "patchify_proj": "proj_in",
        **_under(
            "adaln_single",
            "time_embed",
            _same("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear"),
        ),
        **_same("caption_projection.linear_1", "caption_projection.linear_2", "proj_out", "scale_shift_table"),
    },
    # The only spelling that both diffusers and ComfyUI read.
    down="lora_A",
    up="lora_B",
)
"""LTX-Video 0.9; LTX-2 has further renames."""

COGVIDEOX = Family(
    title="CogVideoX",
    blocks="transformer_blocks",
    inner={
        **_under("attn1", "attn1", _same("to_q", "to_k", "to_v", "to_out.0", "norm_q", "norm_k")),
        **_under("ff", "ff", _FEED_FORWARD),
        **_same("norm1.linear", "norm1.norm", "norm2.linear", "norm2.norm"),
    },
    outer=_same(
        "patch_embed.proj",
        "patch_embed.text_proj",
        "time_embedding.linear_1",
        "time_embedding.linear_2",
        "norm_final",
        "norm_out.linear",
        "norm_out.norm",
        "proj_out",
    ),
    has_native_form=False,
)
"""CogVideoX; its own repository's files have fused layers and are exported to diffusers' names by its own script."""

FAMILIES = {
    "WanTransformer3DModel": WAN,
    "LTXVideoTransformer3DModel": LTX,
    "CogVideoXTransformer3DModel": COGVIDEOX,
}
"""By name of diffusers' class."""


def family_of(network: object) -> Family:
    """The family of a transformer.

    Raises:
        GuidedCDError: Its class is of none.
    """
    name = type(network).__name__
    if name not in FAMILIES:
        raise GuidedCDError(f"LoRA files are read for {', '.join(FAMILIES)}, not for {name}.")
    return FAMILIES[name]


def all_known(names: Iterable[str], rename: object) -> bool:
    """Whether `rename` accepts every name."""
    try:
        for name in names:
            rename(name)  # type: ignore[operator]
    except KeyError:
        return False
    return True
