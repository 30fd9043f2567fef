"""T2V-Turbo's student files: v2's whole UNet state dict, and v1's list of low-rank factors without names.

Both are the VideoCrafter2 UNet with guidance inputs. v1's list holds an (up, down) pair for every linear and
convolution layer in the order in which the original modules were registered, scale 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guidedcd.errors import GuidedCDError
from guidedcd.models.checkpoints.loading import shaped
from guidedcd.models.checkpoints.lvdm_unet import FPS_KEYS, rename_unet, unet_config
from guidedcd.models.checkpoints.reading import View, exists, is_list_of_tensors, open_state, read_object

WHERE = (
    "jiachenli-ucsb publishes T2V-Turbo-v2 (unet_mg.pt) and T2V-Turbo (unet_lora.pt) on the Hugging Face hub; download "
    "it with `hf download jiachenli-ucsb/T2V-Turbo-v2 unet_mg.pt --local-dir .` and give its path"
)
OMEGA = "time_cond_proj.weight"
OMEGA_WIDTH = 256


def read_student(
    path: str | Path, config: Mapping[str, Any], base: Mapping[str, Tensor] | None = None
) -> Mapping[str, Tensor]:
    """The UNet state dict of a published student of any version, without prefix.

    Args:
        path: `unet_mg.pt`, `unet_no_mg.pt`, `unet_lora.pt` or their tensors as safetensors.
        config: lvdm's constructor arguments of the base.
        base: The base UNet's state dict, needed by v1's low-rank file only.

    Raises:
        GuidedCDError: The file is something else, or a v1 file came without a base.
    """
    content = read_object(exists(path, "the student", WHERE))
    if is_list_of_tensors(content):
        if base is None:
            raise GuidedCDError(
                f"{path} is T2V-Turbo v1's low-rank file, which only changes a base model: "
                "give that as well, --teacher videocrafter2:model.ckpt"
            )
        return merge(content, config, base)
    state = open_state(path)
    for prefix in ("model.diffusion_model.", "unet."):
        if prefix + FPS_KEYS[0] in state:
            state = View(state, prefix)
    return state


def targets(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> list[str]:
    """Names of the layers that v1's list changes, in its order: every linear, 2-D and 3-D convolution weight.

    `init_attn`'s projections are 1-D convolutions and not among them.
    """
    config = {
        **unet_config(config),
        "fps_cond": True,
        "time_cond_proj_dim": _width(config),
        "motion_cond_proj_dim": None,
    }
    keys = [key for key in rename_unet(config) if key.endswith(".weight")]
    return [key for key in keys if key == OMEGA or (key in state and state[key].ndim in {2, 4, 5})]


class Merged(Mapping):
    """A base state dict with low-rank changes added, one tensor at a time as it is read."""

    def __init__(self, base: Mapping[str, Tensor], factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Add `up @ down` of each pair in `factors` to the weight of that name, or to 0 if `base` lacks it."""
        self._base, self._factors = base, factors
        self._keys = dict.fromkeys([*base, *factors])

    def __getitem__(self, key: str) -> Tensor:
        """The merged tensor, float32 or wider where it was changed."""
        if key not in self._factors:
            return self._base[key]
        up, down = (factor.detach() for factor in self._factors[key])
        delta = up.flatten(1).float() @ down.flatten(1).float()
        if key not in self._base:
            return delta
        weight = self._base[key]
        return (weight.to(torch.promote_types(weight.dtype, torch.float32)) + delta.reshape(weight.shape)).contiguous()

    def __iter__(self) -> Iterator[str]:
        """The keys of the base, then those that only the factors have."""
        return iter(self._keys)

    def __len__(self) -> int:
        """Number of keys."""
        return len(self._keys)


def merge(factors: Sequence[Tensor], config: Mapping[str, Any], base: Mapping[str, Tensor]) -> Merged:
    """The base UNet with v1's list added. Merge before a frame rate is folded: the list changes that MLP as well.

    The file holds the change of `time_cond_proj` but no file holds what it changes, which the original code draws at
    random at every start. Here it is zero, so that results repeat, with a warning; put the tensor into `base`
    to choose another.

    Args:
        factors: [up_0, down_0, up_1, down_1, ...].
        config: lvdm's constructor arguments of the base.
        base: The base UNet's state dict.

    Raises:
        GuidedCDError: The list does not fit the base; the first layer that differs is named.
    """
    names = targets(config, base)
    if len(factors) != 2 * len(names):
        raise GuidedCDError(
            f"T2V-Turbo v1's list has {len(factors)} tensors, this base model needs {2 * len(names)}: "
            "the file was made for another architecture"
        )
    pairs = dict(zip(names, zip(factors[::2], factors[1::2], strict=True), strict=True))
    channels = base["input_blocks.0.0.weight"].shape[0]
    for name, (up, down) in pairs.items():
        shape = base[name].shape if name in base else torch.Size([channels, _width(config)])
        if up.shape[0] != shape[0] or down.shape[1:] != shape[1:] or up.flatten(1).shape[1] != down.shape[0]:
            raise GuidedCDError(
                f"T2V-Turbo v1's list does not fit {name} {list(shape)}: up {list(up.shape)}, down {list(down.shape)}; "
                "the file was made for another architecture"
            )
    if OMEGA not in base:
        warnings.warn(
            "T2V-Turbo v1's file does not hold the matrix that its omega input starts from (the original draws it at "
            "random each time); zero is used, so results repeat but differ from any one original run",
            stacklevel=2,
        )
    return Merged(base, pairs)


def _width(config: Mapping[str, Any]) -> int:
    """Width of the omega embedding."""
    return unet_config(config).get("time_cond_proj_dim") or OMEGA_WIDTH


def factorise(delta: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The best factors of rank at most `rank`, by singular value decomposition with evenly split singular values.

    Args:
        delta: A weight's change, (out, in, ...).
        rank: Clamped to the rank of the matrix.

    Returns:
        up (out, r), down (r, in, ...) and the squared error of their product.
    """
    matrix = delta.flatten(1).float()
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    r = min(rank, len(s))
    root = s[:r].sqrt()
    return u[:, :r] * root, (root[:, None] * v[:r]).reshape(r, *delta.shape[1:]), float(s[r:].square().sum())


def lora_list(
    config: Mapping[str, Any], base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], rank: int
) -> tuple[list[Tensor], float]:
    """v1's list for a UNet that was trained without low-rank factors, and the relative error of the factors.

    Args:
        config: lvdm's constructor arguments of the base.
        base: The base UNet's state dict, without prefix.
        tuned: The student's, from `guidedcd.models.checkpoints.videocrafter2.lvdm_state`.
        rank: Of the factors.

    Returns:
        The list, and the norm of the lost changes relative to the norm of all changes. Changes of biases and norms are
        always lost, because the format does not contain them.
    """
    names = targets(config, base)
    pairs: list[Tensor] = []
    lost = total = 0.0
    for key, value in tuned.items():
        if key in names:
            continue
        if key not in base:
            raise GuidedCDError(f"T2V-Turbo v1's format has no place for {key}; export t2v-turbo-v2 instead")
        original = shaped(base[key], value.shape)
        assert original is not None, f"{key} has another shape than in the base"
        change = float((value.float() - original.float()).square().sum())
        lost, total = lost + change, total + change
    for name in names:
        before = base[name].float() if name in base else torch.zeros_like(tuned[name], dtype=torch.float32)
        delta = tuned[name].float() - before
        up, down, error = factorise(delta, min(rank, *delta.shape[:2]))  # the original code clamps by channels
        pairs += [up.reshape(*up.shape, *[1] * (delta.ndim - 2)).contiguous(), down.contiguous()]
        lost, total = lost + error, total + float(delta.square().sum())
    return pairs, (lost / total) ** 0.5 if total else 0.0
