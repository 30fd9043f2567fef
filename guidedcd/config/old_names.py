"""Old names of options: whoever writes one gets a sentence with the new one. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from guidedcd.errors import GuidedCDError

MOVED = {
    "preprocess.window": "preprocess.fraction",
    "train.optimizer": "train.optimizer.name",
    "train.lr": "train.optimizer.lr",
    "train.weight_decay": "train.optimizer.weight_decay",
    "train.max_grad_norm": "train.optimizer.max_grad_norm",
    "train.warmup": "train.lr_schedule.warmup",
    "train.cooldown": "train.lr_schedule.cooldown",
    "train.gradient_checkpointing": "train.activation_checkpoint.layers",
    "train.checkpointed": "train.activation_checkpoint.layers",
    "train.decoder_checkpointing": "train.activation_checkpoint.decoder",
    "train.parallel": "train.parallel.mode",
    "train.save_every": "train.checkpoint.every",
    "train.validate_every": "train.validation.every",
    "train.validate_prompts": "train.validation.prompts",
    "train.rollouts": "train.rollouts.videos",
    "train.rollout_steps": "train.rollouts.steps",
    "train.prompts": "train.rollouts.prompts",
}
"""By old path, the new one; as keys of a file."""

SWITCHES = {"train.gradient_checkpointing": {True: "all", False: "none"}}
"""Of old switches, the value of the new option that each position is."""


FLAGS = {("sample", "window"): "fraction"}
"""By command and old flag, the new flag."""


def check_key(path: str, value: Any, source: str) -> None:
    """Refuse an option of a file, a program or a run.json that has a new name.

    Args:
        path: As it is written: "train.lr".
        value: What it is set to; a table is a group of options and no old option.
        source: Where it is written: "mine.toml".

    Raises:
        GuidedCDError: The option has another name now; names it.
    """
    old = path.replace("-", "_")
    if old not in MOVED or isinstance(value, Mapping):
        return
    switch = SWITCHES.get(old, {})
    setting = f' = "{switch[value]}"' if isinstance(value, bool) and value in switch else ""
    raise GuidedCDError(f"{path} in {source} is now {MOVED[old]}{setting}.")


def check_flags(words: Sequence[str]) -> None:
    """Refuse a flag that has a new name.

    Args:
        words: The command line.

    Raises:
        GuidedCDError: There is one; names the new flag.
    """
    for word in words:
        written, _, value = word.partition("=")
        if not written.startswith("--"):
            continue
        old, position = written.removeprefix("--").replace("-", "_"), value.lower() not in ("false", "no", "0")
        if ".no_" in old and old.replace(".no_", ".") in SWITCHES:
            old, position = old.replace(".no_", "."), False
        if (words[0], old) in FLAGS:
            raise GuidedCDError(f"{written} is now --{FLAGS[words[0], old]}.")
        if old in MOVED:
            setting = f" {SWITCHES[old][position]}" if old in SWITCHES else ""
            raise GuidedCDError(f"{written} is now --{MOVED[old].replace('_', '-')}{setting}.")
