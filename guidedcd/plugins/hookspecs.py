"""The whole contract between guidedcd and its plugins: six hooks of one shape."""

from __future__ import annotations

from typing import Protocol

import pluggy

hookspec = pluggy.HookspecMarker("guidedcd")
hookimpl = pluggy.HookimplMarker("guidedcd")


class Register(Protocol):
    """What every hook is given."""

    def __call__(self, name: str, target: str, *, config: type, summary: str = "") -> None:
        """Offer the object at `target` ("module:attribute") under `name`.

        Args:
            name: What users type: lower-case words joined by "-".
            target: Imported only when a run uses it; called with one `config` instance.
            config: A frozen attrs class whose every field has a default.
            summary: One line for `guidedcd plugins list`.
        """


@hookspec
def register_energies(register: Register) -> None:
    """Register energies, whose gradient steers the teacher's ODE step."""


@hookspec
def register_rewards(register: Register) -> None:
    """Register rewards, differentiable scorers of the student's decoded frames."""


@hookspec
def register_routes(register: Register) -> None:
    """Register routes, which choose the rewards and the caption of each sample."""


@hookspec
def register_teachers(register: Register) -> None:
    """Register teachers, adapters from a pretrained model to canonical latents."""


@hookspec
def register_datasets(register: Register) -> None:
    """Register datasets, sequences of captioned clips."""


@hookspec
def register_metrics(register: Register) -> None:
    """Register metrics, which score finished videos."""
