"""ViCLIP's tokenizer, with which the reference tokens are compared."""

from __future__ import annotations

import regex
from open_clip.tokenizer import SimpleTokenizer


class ViClip:
    """ViCLIP's tokenizer: open_clip's with other literal special tokens; the ids always end in the end token."""

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
        """Token ids (length), padded with 0."""
        return self._tokenizer(caption)[0].tolist()
