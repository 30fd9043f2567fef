"""The tokenizer of the embedded reward models."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class WorldTokens:
    """The words of the proving ground, as rewards read them."""

    def __init__(self, max_tokens: int) -> None:
        from guidedcd_shapes.vocabulary import WorldTokenizer

        self.max_tokens = max_tokens
        self._tokenizer = WorldTokenizer(max_tokens)

    def count(self, text: str) -> int:
        """Number of tokens of `text` before truncation, special tokens included."""
        return self._tokenizer.count(text)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, max_tokens)."""
        ids = self._tokenizer(list(texts))
        return ids, self._tokenizer.mask(ids).long()
