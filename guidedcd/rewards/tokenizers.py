"""Tokenizers of reward models behind one interface, and a cache of caption features."""

from __future__ import annotations

import json
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

CACHED = 20_000
"""The largest number of captions whose features are cached, a few kilobytes each."""


class Tokenizer(Protocol):
    """Converts captions to token ids of fixed length."""

    max_tokens: int
    """Length of the ids, special tokens included."""

    def count(self, text: str) -> int:
        """Tokens of `text` before any truncation, special tokens included."""

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (B, max_tokens) int64, and the mask (B, max_tokens) int64 with 1 for real tokens."""


class ClipTokens:
    """open_clip's version of CLIP's byte-pair encoding: start 49406, end 49407, padded with 0; cuts keep the end."""

    def __init__(self, max_tokens: int = 77) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        self.max_tokens = max_tokens
        self._tokenizer = SimpleTokenizer(context_length=max_tokens)

    @property
    def special(self) -> dict[str, int]:
        """Ids of start, end and padding, and how many ids there are."""
        tokenizer = self._tokenizer
        size = {"vocab_size": tokenizer.vocab_size}
        return {"sot": tokenizer.sot_token_id, "eot": tokenizer.eot_token_id, "pad": 0, **size}

    def count(self, text: str) -> int:
        """Tokens of `text`, start and end included."""
        return len(self._tokenizer.encode(text)) + 2

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (B, max_tokens); the mask extends to the end token, which has the largest id."""
        ids = self._tokenizer(list(texts))
        positions = torch.arange(ids.shape[1])
        return ids, (positions <= ids.argmax(-1, keepdim=True)).long()


class TransformersClipTokens:
    """transformers' version of CLIP's encoding: broken Unicode and HTML entities stay; padded with the end token."""

    def __init__(self, max_tokens: int = 77) -> None:
        from open_clip.tokenizer import SimpleTokenizer
        from transformers import CLIPTokenizerFast

        self.max_tokens = max_tokens
        base = SimpleTokenizer()  # the same merges; its two special tokens have other names
        vocab = dict(base.encoder)
        vocab["<|startoftext|>"], vocab["<|endoftext|>"] = vocab.pop("<start_of_text>"), vocab.pop("<end_of_text>")
        merges = [" ".join(pair) for pair in sorted(base.bpe_ranks, key=base.bpe_ranks.get)]
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
            (Path(folder) / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
            self._tokenizer = CLIPTokenizerFast.from_pretrained(folder)

    def count(self, text: str) -> int:
        """Tokens of `text`, start and end included."""
        return len(self._tokenizer.tokenize(text)) + 2

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, max_tokens)."""
        encoded = self._tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        return encoded["input_ids"], encoded["attention_mask"]


class BertTokens:
    """BERT's uncased WordPiece from a vocab.txt, padded and cut to a fixed length."""

    def __init__(self, vocab: Path, max_tokens: int = 40) -> None:
        from tokenizers import BertWordPieceTokenizer

        self.max_tokens = max_tokens
        self._untruncated = BertWordPieceTokenizer(str(vocab), lowercase=True)
        self._fixed = BertWordPieceTokenizer(str(vocab), lowercase=True)
        self._fixed.enable_truncation(max_tokens)
        self._fixed.enable_padding(length=max_tokens, pad_id=self._fixed.token_to_id("[PAD]"))

    def count(self, text: str) -> int:
        """Tokens of `text`, [CLS] and [SEP] included."""
        return len(self._untruncated.encode(text).ids)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, max_tokens)."""
        encoded = self._fixed.encode_batch(list(texts))
        return torch.tensor([one.ids for one in encoded]), torch.tensor([one.attention_mask for one in encoded])


class PlaceholderTokens:
    """A placeholder for planning, without a vocabulary: every text has `max_tokens` tokens."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens

    def count(self, text: str) -> int:
        """`max_tokens`, for any text."""
        return self.max_tokens

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Zeros and ones (B, max_tokens)."""
        ids = torch.zeros(len(texts), self.max_tokens, dtype=torch.long)
        return ids, torch.ones_like(ids)


class CaptionFeatures:
    """A cache of caption features, which are computed without gradient.

    Each caption is encoded alone, so its features do not depend on other captions, and a resumed run computes the same
    bits as an uninterrupted one.
    """

    def __init__(self, encode: Callable[[str], Tensor], size: int = CACHED) -> None:
        self._encode, self._size = encode, size
        self._features: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Features (B, E)."""
        features = []
        for caption in captions:
            if caption not in self._features:
                with torch.no_grad():
                    self._features[caption] = self._encode(caption)
            self._features.move_to_end(caption)
            features.append(self._features[caption])
        while len(self._features) > self._size:
            self._features.popitem(last=False)
        return torch.stack(features)

    def clear(self) -> None:
        """Empty the cache, for example after the weights moved."""
        self._features.clear()
