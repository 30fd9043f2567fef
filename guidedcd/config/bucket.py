"""Buckets: sizes of training videos, written FRAMESxHEIGHTxWIDTH. No torch."""

from __future__ import annotations

import re

import attrs

from guidedcd.errors import GuidedCDError, refusal, shortened


@attrs.frozen(order=True)
class Bucket:
    """One size of training videos."""

    frames: int
    height: int
    """Pixels."""
    width: int
    """Pixels."""

    def __str__(self) -> str:
        """FRAMESxHEIGHTxWIDTH, such as 33x256x448."""
        return f"{self.frames}x{self.height}x{self.width}"

    @classmethod
    def parse(cls, text: str) -> Bucket:
        """The bucket that `text` names.

        Raises:
            GuidedCDError: `text` has another form.
        """
        match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text.strip())
        if not match:
            raise GuidedCDError(
                f"a bucket is FRAMESxHEIGHTxWIDTH, such as 33x256x448, not '{shortened(text, 40)}'; several are joined "
                "by commas."
            )
        return cls(*map(int, match.groups()))


def are_buckets(instance: object, attribute: attrs.Attribute, value: tuple[str, ...]) -> None:
    """Different buckets."""
    try:
        buckets = [Bucket.parse(text) for text in value]
    except GuidedCDError as error:
        raise ValueError(f"'{attribute.name}': {error}") from None
    if len(set(buckets)) < len(buckets):
        raise ValueError(refusal(f"'{attribute.name}'", value, "different buckets"))
