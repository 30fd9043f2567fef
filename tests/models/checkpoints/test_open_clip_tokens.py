"""Tokens as open_clip makes them."""

from __future__ import annotations

import json

import pytest
import torch

from guidedcd.errors import GuidedCDError
from guidedcd.models.checkpoints.open_clip_tokens import clean, tokenizer, write_tokenizer

PROMPTS = [
    "",
    "a cat!",
    "A CAT !!! and, (a dog)... it's 42",
    "“curly” &amp; &lt;b&gt; naïve café 日本語 🎬",
    "<start_of_text> literal <end_of_text> <|startoftext|> <pad>",
    "a very long prompt " * 40,
    "tabs\tand\n\nnew   lines ",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tokenizer folders by vocabulary size."""
    paths = {}
    for size in (514, 1000, 49408):
        paths[size] = tmp_path_factory.mktemp(f"tokens{size}")
        write_tokenizer(paths[size], size, 77)
    return paths


def test_ids_are_the_reference_ones(shared):
    """Every prompt of the published table, special texts and punctuation included."""
    cases = json.loads((shared("videocrafter2", "tokenizer") / "tokenizer_golden.json").read_text())["cases"]

    for case in cases:
        assert tokenizer()([case["prompt"]])[0].tolist() == case["ids"], case["prompt"]


@pytest.mark.parametrize("size", [514, 1000, 49408])
def test_a_written_tokenizer_gives_the_same_ids_on_clean_text(folders, size):
    """transformers' CLIPTokenizer pads with id 0 and still reads "!" as a word."""
    from transformers import CLIPTokenizerFast

    written, original = CLIPTokenizerFast.from_pretrained(folders[size]), tokenizer(size)
    ids = written([clean(p) for p in PROMPTS], padding="max_length", truncation=True, max_length=77).input_ids

    assert ids == original(PROMPTS, context_length=77).tolist()
    assert written.pad_token_id == 0


def test_a_small_vocabulary_is_the_beginning_of_the_large_one():
    """Fewer merges cut words into more pieces, and the two special tokens stay last."""
    small = tokenizer(1000)

    assert (small.sot_token_id, small.eot_token_id) == (998, 999)
    assert small(PROMPTS, context_length=77).max() < 1000
    assert torch.equal(small([""], context_length=4), torch.tensor([[998, 999, 0, 0]]))


def test_an_impossible_vocabulary_is_refused():
    """Fewer tokens than single bytes, or more than open_clip has."""
    for size in (513, 49409):
        with pytest.raises(GuidedCDError, match="514 to 49408"):
            tokenizer(size)
