"""Two more tokenizers over CLIP's merges, which the reference tokens are held against."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import regex
from open_clip.tokenizer import SimpleTokenizer


class ViClip:
    """ViCLIP's: as open_clip's, but captions may contain other literal special tokens; always ends in the end token."""

    def __init__(self, length: int) -> None:
        self._tokenizer = tokenizer = SimpleTokenizer(context_length=length)
        start, end = "<|startoftext|>", "<|endoftext|>"
        pairs = ((tokenizer.sot_token_id, start), (tokenizer.eot_token_id, end))
        ids = {word: i for word, i in tokenizer.encoder.items() if i < tokenizer.sot_token_id}
        tokenizer.encoder = ids | {word: i for i, word in pairs}
        tokenizer.cache = {word: word for _, word in pairs}
        special = "|".join(regex.escape(word) for _, word in pairs)
        tokenizer.pat = regex.compile(
            special + r"|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE
        )

    def __call__(self, caption: str) -> list[int]:
        """Ids, padded with 0."""
        return self._tokenizer(caption)[0].tolist()


class HuggingFaceClip:
    """transformers' CLIPTokenizer over the same merges, its padding replaced by 0."""

    def __init__(self, length: int) -> None:
        from transformers import CLIPTokenizer

        base = SimpleTokenizer()
        vocab = dict(base.encoder)
        vocab["<|startoftext|>"] = vocab.pop("<start_of_text>")
        vocab["<|endoftext|>"] = vocab.pop("<end_of_text>")
        merges = [" ".join(pair) for pair in sorted(base.bpe_ranks, key=base.bpe_ranks.get)]
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
            (Path(folder) / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
            self._tokenizer = CLIPTokenizer.from_pretrained(folder)
        self._length = length

    def __call__(self, caption: str) -> list[int]:
        """Ids, padded with 0."""
        ids = self._tokenizer(caption, truncation=True, max_length=self._length)["input_ids"]
        return ids + [0] * (self._length - len(ids))
