"""The seven hooks through which plugins register components."""

from __future__ import annotations

from typing import Protocol

import pluggy

hookspec = pluggy.HookspecMarker("guidedcd")
hookimpl = pluggy.HookimplMarker("guidedcd")


class Register(Protocol):
    """The function that every hook receives and calls once for each component."""

    def __call__(self, name: str, target: str, *, config: type, summary: str = "") -> None:
        """Register a component.

        Args:
            name: Its name on the command line and in files: lower-case words joined by "-".
            target: "module:attribute" of a class or function that returns the component. It is imported when a run
                uses the component, and called with an instance of `config`.
            config: A frozen attrs class of its options, in which every field has a default.
            summary: One line for `guidedcd plugins list`.
        """


@hookspec
def register_energies(register: Register) -> None:
    """Register energies, whose gradients steer the ODE steps of the teacher."""


@hookspec
def register_rewards(register: Register) -> None:
    """Register rewards, which score decoded frames of the student differentiably."""


@hookspec
def register_routes(register: Register) -> None:
    """Register routes, which choose the rewards and the caption of each sample."""


@hookspec
def register_teachers(register: Register) -> None:
    """Register teachers, which adapt pretrained text-to-video models."""


@hookspec
def register_datasets(register: Register) -> None:
    """Register datasets, sequences of captioned clips."""


@hookspec
def register_metrics(register: Register) -> None:
    """Register metrics, which measure finished videos."""


@hookspec
def register_suites(register: Register) -> None:
    """Register suites, benchmarks with prompts, a layout of videos and scores of their own."""
