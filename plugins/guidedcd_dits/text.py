"""Text encoders of the T5 kind: captions to embeddings, as the pipelines of diffusers compute them.

Legend: B captions, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guidedcd.models.teachers.protocol import Cond


class T5Text(nn.Module):
    """An encoder of transformers and its tokenizer; captions are padded or cut to `length` tokens."""

    model: Any

    def __init__(self, model: Any, tokenizer: Any, length: int, clean: Callable[[str], str] = str) -> None:
        """Wrap an encoder.

        Args:
            model: Encoder of transformers.
            tokenizer: Its tokenizer; None encodes every caption as zeros, for planning.
            length: Tokens of a caption L.
            clean: Applied to each caption.
        """
        super().__init__()
        self.model, self.tokenizer, self.length, self.clean = model, tokenizer, length, clean

    def tokens(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask of captions, each (B, L) int64, on the model's device."""
        device = next(self.model.parameters()).device
        if self.tokenizer is None:
            ids = torch.zeros(len(captions), self.length, dtype=torch.long, device=device)
            return ids, torch.ones_like(ids)
        tokens = self.tokenizer(
            [self.clean(caption) for caption in captions],
            padding="max_length",
            max_length=self.length,
            truncation=True,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return tokens.input_ids.to(device), tokens.attention_mask.to(device)

    def save_tokenizer(self, folder: Path) -> str:
        """Write the tokenizer's files into `folder`; returns the name of its class."""
        self.tokenizer.save_pretrained(folder)
        return type(self.tokenizer).__name__


class PaddedText(T5Text):
    """The last hidden state of all L tokens; padding is attended to, as in CogVideoX."""

    def forward(self, captions: Sequence[str]) -> Cond:
        """{"prompt_embeds": (B, L, D)}."""
        ids, _ = self.tokens(captions)
        return {"prompt_embeds": self.model(ids)[0]}


class MaskedText(T5Text):
    """The last hidden state of all L tokens, and which of them belong to the caption, as in LTX-Video."""

    def forward(self, captions: Sequence[str]) -> Cond:
        """{"prompt_embeds": (B, L, D), "prompt_mask": (B, L) bool}."""
        ids, mask = self.tokens(captions)
        return {"prompt_embeds": self.model(ids)[0], "prompt_mask": mask.bool()}


class TrimmedText(T5Text):
    """The last hidden state of the caption's own tokens, and zeros for the others, as in Wan."""

    def forward(self, captions: Sequence[str]) -> Cond:
        """{"prompt_embeds": (B, L, D)}."""
        ids, mask = self.tokens(captions)
        # Transformers reads the values of a mask, which tensors without memory do not have.
        hidden = self.model(ids, None if ids.is_meta else mask).last_hidden_state
        own = torch.arange(self.length, device=mask.device) < mask.gt(0).sum(dim=1, keepdim=True)
        return {"prompt_embeds": torch.where(own[..., None], hidden, torch.zeros_like(hidden))}
