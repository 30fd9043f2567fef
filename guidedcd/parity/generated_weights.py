"""Weights that a fixture describes by a recipe instead of storing them."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guidedcd.errors import GuidedCDError

_CONDITIONING = ("time_embed.", "fps_embedding.", "emb_layers.", "time_cond_proj", "motion_cond_proj", "combine_proj")


def generated(keys: Mapping[str, Sequence[int]], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Every tensor of a checkpoint from its name, its shape and the config's seed, without schedule tables.

    Per key: numpy's RandomState seeded with crc32(key) xor seed, standard normal, then by kind: norm weights
    1 + 0.25 n, biases and the temperature 0.2 n, embeddings 0.5 n, conditioning weights 2 n / sqrt(fan in), other
    weights n / sqrt(fan in); rounded to float16.

    Raises:
        GuidedCDError: The digest of the weights is not the one that the config states.
    """
    arrays = {key: _one(key, tuple(shape), config["seed"]) for key, shape in keys.items() if "." in key}
    expected = config.get("weights_sha256_without_buffers")
    if expected is not None:
        digest = hashlib.sha256()
        for key in sorted(arrays):
            digest.update(key.encode())
            digest.update(arrays[key].tobytes())
        if digest.hexdigest() != expected:
            raise GuidedCDError("The generated weights differ from those of the fixture: their digests are not equal.")
    return {key: torch.from_numpy(value).float() for key, value in arrays.items()}


def _one(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    state = np.random.RandomState((zlib.crc32(key.encode()) ^ seed) & 0xFFFFFFFF)
    n = state.standard_normal(int(np.prod(shape)) if shape else 1).reshape(shape)
    leaf = key.rpartition(".")[2]
    if leaf == "positional_embedding" or key.endswith("token_embedding.weight"):
        n = 0.5 * n
    elif leaf.endswith("bias") or key.endswith("logit_scale"):
        n = 0.2 * n
    elif leaf == "weight" and len(shape) == 1:
        n = 1 + 0.25 * n
    else:
        n = (2.0 if any(name in key for name in _CONDITIONING) else 1.0) * n / math.sqrt(int(np.prod(shape[1:])))
    return np.ascontiguousarray(n.astype(np.float16))
