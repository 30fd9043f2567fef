"""The text around a video: the released template in Qwen2-VL's chat format, as token ids.

The template is VideoAlign's `detailed_special`, MIT licence (LICENSE-VideoAlign.txt).
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

import attrs

from guidedcd.errors import GuidedCDError

PREFIX = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>"
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
VIDEO = "<|video_pad|>"
REWARDS = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")
"""The tokens at which visual quality, motion quality and text alignment are read."""


@cache
def template() -> str:
    """The released prompt; `{text_prompt}` stands for the caption."""
    return (files("guidedcd_videoreward") / "template.txt").read_bytes().decode("utf-8")


def text(caption: str) -> str:
    """The whole text of one video, with one token in place of its frames."""
    return PREFIX + template().format(text_prompt=caption) + SUFFIX


@attrs.frozen
class Chat:
    """The token ids of one video's text."""

    before: tuple[int, ...]
    """Ids before the video's tokens."""
    video: int
    """The id that stands for one token of the video."""
    after: tuple[int, ...]
    """Ids after the video's tokens."""
    rewards: tuple[int, int, int]
    """Positions of the three reward tokens in `after`."""

    def ids(self, video_tokens: int) -> list[int]:
        """All ids, for a video of that many tokens."""
        return [*self.before, *[self.video] * video_tokens, *self.after]

    def positions(self, video_tokens: int) -> list[int]:
        """Positions of the three reward tokens in `ids`."""
        return [len(self.before) + video_tokens + position for position in self.rewards]

    def until(self, heads: int) -> Chat:
        """The text up to the reward token number `heads` (1 to 3): attention is causal, the rest has no effect."""
        return attrs.evolve(self, after=self.after[: self.rewards[heads - 1] + 1])


class ChatTokens:
    """The tokenizer of the checkpoint: Qwen2-VL's with three reward tokens.

    Args:
        folder: Contains tokenizer.json.
        context: Positions of the network; captions may take half of them.

    Raises:
        GuidedCDError: The file is missing, damaged or has no reward tokens.
    """

    def __init__(self, folder: Path, context: int) -> None:
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise GuidedCDError(f"videoreward: {folder} has no tokenizer.json; download the whole repository again.")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare exceptions
            raise GuidedCDError(f"videoreward: {path} is no tokenizer ({error}).") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        ids = [self._tokenizer.token_to_id(token) for token in (VIDEO, *REWARDS)]
        if None in ids:
            token = (VIDEO, *REWARDS)[ids.index(None)]
            raise GuidedCDError(f"videoreward: {path} lacks the token {token}; use the checkpoint's own tokenizer.")
        self._reserved = [int(id_) for id_ in ids if id_ is not None]
        self.size: int = self._tokenizer.get_vocab_size()
        self.max_tokens = context // 2
        self.pad: int = self._tokenizer.token_to_id("<|endoftext|>") or 0

    def count(self, text: str) -> int:
        """Tokens of a caption."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def chat(self, caption: str) -> Chat:
        """The token ids of a video's text.

        Raises:
            GuidedCDError: The caption contains a token of the video or of a reward.
        """
        ids = self._tokenizer.encode(text(caption), add_special_tokens=False).ids
        reserved = self._reserved
        if [id_ for id_ in ids if id_ in reserved] != reserved:
            names = ", ".join((VIDEO, *REWARDS))
            raise GuidedCDError(f"the caption {caption[:80]!r} contains one of the tokens {names}; remove it.")
        start = ids.index(reserved[0])
        after = ids[start + 1 :]
        quality, motion, alignment = (after.index(id_) for id_ in reserved[1:])
        return Chat(tuple(ids[:start]), reserved[0], tuple(after), (quality, motion, alignment))


class PlaceholderChat:
    """Stands for the tokenizer in a plan, which has no files: the released template with a caption of 64 tokens."""

    def __init__(self, context: int) -> None:
        self.max_tokens, self.pad = context // 2, 0

    def count(self, text: str) -> int:
        """The words of a caption."""
        return len(text.split())

    def chat(self, caption: str) -> Chat:
        """The lengths of the released template, without its ids."""
        return Chat((0,) * 15, 0, (0,) * 870, (293, 560, 861))
