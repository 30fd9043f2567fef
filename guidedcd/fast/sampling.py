"""The networks that make videos, on the fastest exact paths of their device."""

from __future__ import annotations

from typing import Any

from guidedcd.errors import GuidedCDError
from guidedcd.fast.switch import speed_up

CHOICES = ("auto", "no", "layers", "graphs", "blocks")
"""`layers`: exact layers; `graphs`: replayed as CUDA graphs as well; `blocks`: compiled; `auto`: `layers` on GPUs."""


def check(choice: str) -> None:
    """Refuse what is no choice.

    Raises:
        GuidedCDError: It lists the choices.
    """
    if choice not in CHOICES:
        raise GuidedCDError(f"--fast must be one of {', '.join(CHOICES)}, not '{choice}'.")


def quicken(student: Any, teacher: Any, choice: str = "auto") -> None:
    """Switch the networks of a student and its teacher in place, where they are 3D UNets, and the decoder.

    Args:
        student: Its `network` makes the videos.
        teacher: Its `network` is compared with; its `vae` decodes.
        choice: One of `CHOICES`.

    Raises:
        GuidedCDError: The choice is unknown.
    """
    check(choice)
    on_gpu = teacher.device.type == "cuda"
    if choice == "no" or (choice == "auto" and not on_gpu):
        return
    compiled = "blocks" if choice == "blocks" else None
    for network in (student.network, teacher.network):
        if type(network).__name__ == "UNet3DConditionModel":
            speed_up(network, compile=compiled, graphs=choice == "graphs")
    if type(getattr(teacher, "vae", None)).__name__ == "AutoencoderKL":
        speed_up(teacher.vae)
