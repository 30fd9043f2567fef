"""Text encoders of the T5 kind: captions to embeddings, as the pipelines of diffusers compute them.

Legend: B captions, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guidedcd.errors import GuidedCDError
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

    def padded(self, prompt_embeds: Sequence[Tensor]) -> Tensor:
        """Embedded tokens of captions (L_i, D) each, filled with zeros to (B, L, D), on the encoder's device.

        Rows of zeros at the end of a caption count as padding.

        Raises:
            GuidedCDError: A caption has another width than the encoder's, or more than L tokens.
        """
        width, weight = self.model.config.d_model, next(self.model.parameters())
        padded = weight.new_zeros(len(prompt_embeds), self.length, width)
        for row, embeds in zip(padded, prompt_embeds, strict=True):
            if embeds.shape[1] != width:
                raise GuidedCDError(
                    f"the data have captions embedded in {embeds.shape[1]} numbers a token, but this teacher's text "
                    f"encoder has {width}: they were embedded by another one."
                )
            own = embeds[: own_tokens(embeds)]
            if len(own) > self.length:
                raise GuidedCDError(
                    f"the data have a caption of {len(own)} embedded tokens, but this teacher reads {self.length}: "
                    "raise its text_length."
                )
            row[: len(own)] = own.to(row)
        return padded

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

    def conditioning(self, prompt_embeds: Sequence[Tensor]) -> Cond:
        """What `forward` returns, of embedded tokens (L_i, D) each; masked tokens are zeros."""
        padded = self.padded(prompt_embeds)
        lengths = torch.tensor([[own_tokens(embeds)] for embeds in prompt_embeds], device=padded.device)
        mask = torch.arange(self.length, device=padded.device) < lengths
        return {"prompt_embeds": padded, "prompt_mask": mask}


class TrimmedText(T5Text):
    """The last hidden state of the caption's own tokens, and zeros for the others, as in Wan."""

    def forward(self, captions: Sequence[str]) -> Cond:
        """{"prompt_embeds": (B, L, D)}."""
        ids, mask = self.tokens(captions)
        # Transformers reads the values of a mask, which tensors without memory do not have.
        hidden = self.model(ids, None if ids.is_meta else mask).last_hidden_state
        own = torch.arange(self.length, device=mask.device) < mask.gt(0).sum(dim=1, keepdim=True)
        return {"prompt_embeds": torch.where(own[..., None], hidden, torch.zeros_like(hidden))}

    def conditioning(self, prompt_embeds: Sequence[Tensor]) -> Cond:
        """What `forward` returns, of embedded tokens (L_i, D) each."""
        return {"prompt_embeds": self.padded(prompt_embeds)}


def own_tokens(prompt_embeds: Tensor) -> int:
    """The number of tokens of an embedded caption (L, D) up to the last one that is not zero."""
    filled = prompt_embeds.ne(0).any(1).nonzero()
    return int(filled[-1]) + 1 if len(filled) else 0
