"""A reward in another environment: a function there, held to the contract of rewards.

Legend: B videos, F frames, H/W pixels.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from guidedcd.environments.function import ForeignFunction
from guidedcd.environments.process import Program
from guidedcd.errors import GuidedCDError
from guidedcd_external import ExternalConfig


class External(nn.Module):
    """The scores that a function (frames, captions) of another environment returns."""

    generator: torch.Generator | None = None
    """Source of the seed of the function's random numbers, which the engine sets in training; None is seed 0."""

    def __init__(self, config: ExternalConfig, *, weights: bool = True) -> None:
        """Find the program; the process starts with the first call.

        Raises:
            GuidedCDError: The options name no function or no Python; or there is nothing to run (`weights` is False).
        """
        super().__init__()
        if not weights:
            raise GuidedCDError("it runs in a process of its own, whose time and memory are not known.")
        self.config, self.function = config, ForeignFunction(program(config))
        self._counted = lru_cache(4096)(self._count)

    def __getstate__(self) -> dict:
        state = {key: value for key, value in self.__dict__.items() if key != "_counted"}
        return state | {"generator": None}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._counted = lru_cache(4096)(self._count)

    @property
    def max_tokens(self) -> int:
        """Context length in tokens; no limit if neither the option nor the function states one."""
        return self.config.max_tokens or self.function.process().max_tokens or sys.maxsize

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` by the function's own `count_tokens`, or its words."""
        return self._counted(text)

    def _count(self, text: str) -> int:
        process = self.function.process()
        if not process.counts:
            return len(text.split())
        count = process.ask({"do": "count", "text": text}).get("count")
        if type(count) is not int or count < 0:
            raise process.wrong(f"counts {count!r} tokens")
        return count

    def forward(self, video: Tensor, captions: Sequence[str]) -> Tensor:
        """Frames (B, F, 3, H, W) in [0, 1] and B captions -> scores (B,), higher is better, of the function's dtype.

        Raises:
            GuidedCDError: The function failed or its process ended; or it returned anything but one finite number for
                each video.
        """
        seed = 0
        if self.generator is not None:
            seed = int(torch.randint(2**62, (), generator=self.generator, device=self.generator.device))
        device = None if self.config.device == "same" else self.config.device
        scores = self.function(video, captions, device=device, seed=seed)
        where = self.function.program.text
        if not isinstance(scores, Tensor):
            raise GuidedCDError(f"{where} returned a dict; a reward must return one tensor of scores.")
        if scores.shape != (len(captions),):
            shape = f"a tensor of shape {list(scores.shape)} for {len(captions)} videos"
            raise GuidedCDError(f"{where} returned {shape}; it must return one score each.")
        if not scores.is_floating_point():
            raise GuidedCDError(f"{where} returned scores of type {scores.dtype}; they must be floating point numbers.")
        if not scores.isfinite().all():
            raise GuidedCDError(f"{where} returned {scores.tolist()}; scores must be finite.")
        return scores


def program(config: ExternalConfig) -> Program:
    """The function's place, with an absolute path of the Python.

    Raises:
        GuidedCDError: The options name no function or no Python.
    """
    what = f"reward 'external:{config.function}'" if config.function else "reward 'external'"
    if not config.function:
        raise GuidedCDError(f"{what} needs a function: write external:MODULE:ATTRIBUTE or external:FILE.py:ATTRIBUTE.")
    if not config.python:
        raise GuidedCDError(
            f"{what} needs the Python of its environment: --rewards.external.python /envs/x/bin/python."
        )
    path = shutil.which(os.path.expanduser(config.python))
    if path is None:
        raise GuidedCDError(
            f"{what}: there is no program {config.python}; state the Python of another environment, such as "
            "/envs/other/bin/python."
        )
    return Program(
        what=what,
        python=os.path.abspath(path),
        function=config.function,
        options=json.loads(config.options),
        timeout=config.timeout,
        start_timeout=config.start_timeout,
    )
