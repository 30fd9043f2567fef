"""The embedded reward models, as sources for `guidedcd.rewards.image_text`."""

from __future__ import annotations

from guidedcd.rewards.image_text import Source
from guidedcd_shapes.models import embedded
from guidedcd_shapes.tokens import WorldTokens


def embedded_source(name: str) -> Source:
    """Sizes, tokenizer and weights of the embedded "clip" or "hps".

    Raises:
        GuidedCDError: This installation has no such file.
    """
    path, sizes = embedded(name)
    context = sizes.get("context") or sizes["text_cfg"]["context_length"]
    return Source(sizes=sizes, tokenizer=lambda: WorldTokens(context), file=lambda: path)
