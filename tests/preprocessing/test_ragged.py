"""Conditioning is stored without its padding, and read as it was."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from guidedcd.preprocessing import ragged


@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_what_is_read_is_what_was_stored(tmp_path_factory, lengths, seed):
    """Every video's conditioning is the same bits after storing, and only rows of padding are left out."""
    generator = torch.Generator().manual_seed(seed)
    cond = {
        "prompt_embeds": torch.randn(len(lengths), 5, 3, generator=generator),
        "prompt_mask": torch.ones(len(lengths), 5, dtype=torch.bool),
        "pooled": torch.zeros(len(lengths)),
    }
    for video, length in enumerate(lengths):
        cond["prompt_embeds"][video, length:] = 0
        cond["prompt_mask"][video, length:] = False
    tensors = ragged.trimmed(cond)
    assert {name: value.shape[0] for name, value in tensors.items() if name.startswith(ragged.ROWS)} == (
        {} if min(lengths) == 5 else dict.fromkeys(("cond_rows.prompt_embeds", "cond_rows.prompt_mask"), sum(lengths))
    )
    path = tmp_path_factory.mktemp("shard") / "shard.safetensors"
    save_file(tensors, path)
    with safe_open(path, framework="pt") as file:
        assert sorted(ragged.keys(file.keys())) == sorted(cond)
        for key, value in cond.items():
            for video, expected in enumerate(value):
                assert torch.equal(ragged.of_video(file, key, video), expected)
            assert torch.equal(ragged.of_shard(file)[f"cond.{key}"], value)


@pytest.mark.parametrize("value", [torch.ones(2, 4, 3), torch.zeros(3), torch.zeros(0, 4, 3)])
def test_conditioning_without_padding_is_stored_as_it_is(value):
    """Embeddings that do not end in zeros have the name and the shape that stores always had."""
    (name, stored), *others = ragged.trimmed({"prompt_embeds": value}).items()
    assert not others and name == "cond.prompt_embeds" and stored is value
