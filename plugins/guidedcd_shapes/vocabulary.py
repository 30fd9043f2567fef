"""One word vocabulary for all embedded models, behind a tokenizer per context length."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guidedcd.documents import read_json
from guidedcd.files import write_json
from guidedcd_shapes.captions import words

PAD, UNKNOWN = 0, 1
VOCABULARY: tuple[str, ...] = ("<pad>", "<unk>", *words(), "<bos>", "<eos>")
"""<eos> has the highest id, where CLIP text towers look for it."""
BEGIN, END = len(VOCABULARY) - 2, len(VOCABULARY) - 1
INDEX = {word: i for i, word in enumerate(VOCABULARY)}
_WORD = re.compile(r"[a-z]+|[.,]")


class WorldTokenizer:
    """Texts to padded ids; a text that is too long is truncated and still ends in <eos>."""

    def __init__(self, context: int) -> None:
        """Keep the context length, <bos> and <eos> included."""
        self.context = context

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Ids (B, context), int64, padded with 0."""
        ids = torch.full((len(texts), self.context), PAD, dtype=torch.long)
        for row, text in zip(ids, texts, strict=True):
            tokens = [BEGIN, *self.encode(text)[: self.context - 2], END]
            row[: len(tokens)] = torch.tensor(tokens)
        return ids

    def encode(self, text: str) -> list[int]:
        """Ids of all words, without <bos> and <eos>; case and unknown punctuation are ignored."""
        return [INDEX.get(word, UNKNOWN) for word in _WORD.findall(text.lower())]

    def count(self, text: str) -> int:
        """Number of tokens before truncation, <bos> and <eos> included."""
        return len(self.encode(text)) + 2

    def mask(self, ids: Tensor) -> Tensor:
        """Mask (B, context), int64: 1 for a token of `ids`, 0 for padding."""
        return (ids != PAD).long()

    def position(self, text: str, word: str) -> int | None:
        """Position of the last `word` before truncation, where <bos> has position 1; None if it is absent."""
        tokens = _WORD.findall(text.lower())
        return max((i + 2 for i, token in enumerate(tokens) if token == word), default=None)


def save_tokenizer(folder: Path, length: int) -> str:
    """Write a tokenizer for transformers 4 and 5, and return the name of its class.

    Args:
        folder: Folder of its files.
        length: Context length, <bos> and <eos> included.
    """
    transformers_tokenizer(length).save_pretrained(folder)
    config = folder / "tokenizer_config.json"
    # transformers 5 writes a class name that 4 does not have; both have this one.
    write_json(config, {**read_json(config), "tokenizer_class": "PreTrainedTokenizerFast"})
    return "PreTrainedTokenizerFast"


def transformers_tokenizer(length: int) -> Any:
    """A tokenizer of transformers with this vocabulary and context length."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pad, unknown, begin, end = (VOCABULARY[i] for i in (PAD, UNKNOWN, BEGIN, END))
    # Captions never spell special tokens: "<pad>" in a text is the unknown word "pad".
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[a-z]+|[.,]"), behavior="removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(begin, BEGIN), (end, END)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=length,
        bos_token=begin,
        eos_token=end,
        unk_token=unknown,
        pad_token=pad,
        split_special_tokens=True,
    )
