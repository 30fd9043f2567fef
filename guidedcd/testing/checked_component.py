"""The component under test."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from unittest import SkipTest

from guidedcd.errors import GuidedCDError, PluginError
from guidedcd.plugins.isolation import PluginWarning
from guidedcd.plugins.registry import Component


class CheckedComponent:
    """A component under test, built once for all its checks."""

    def __init__(self, component: Component, config: Any = None) -> None:
        """Keep the component and its options (None: the defaults)."""
        self.component, self.config = component, config
        self.changes: list[str] = []
        """A sentence for each change of the process when the component was imported or built."""

    @contextmanager
    def recording_changes(self) -> Iterator[None]:
        """Add to `changes` what the block changed in the process."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        for one in caught:
            if isinstance(one.message, PluginWarning):
                self.changes.append(str(one.message))
            else:
                warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)

    @cached_property
    def built(self) -> Any:
        """The component, built with its config.

        Raises:
            SkipTest: It cannot be built with its defaults, because a file is missing.
        """
        try:
            with self.recording_changes():
                return self.component.build(self.config)
        except PluginError:  # it cannot be imported, or ended the program
            raise
        except GuidedCDError as error:
            if self.config is not None:
                raise
            raise SkipTest(f"it cannot be built with its defaults: {error}") from error

    @cached_property
    def options(self) -> Any:
        """The config that it is built with."""
        return self.component.config() if self.config is None else self.config

    @cached_property
    def teacher(self) -> Any:
        """A tiny teacher, shared by the checks: one whose network records what an energy needs."""
        return self._tiny_teacher()

    @cached_property
    def teacher64(self) -> Any:
        """The tiny teacher in float64."""
        import torch

        return self._tiny_teacher().to("cpu", torch.float64)

    @cached_property
    def meta_teacher(self) -> Any:
        """The tiny teacher on the meta device, whose tensors have shapes only."""
        return self._tiny_teacher().to("meta")

    def _tiny_teacher(self) -> Any:
        needs = getattr(self.built, "needs", ()) if self.component.kind == "energy" else ()
        if any(str(need).startswith("self-attention") for need in needs):
            from guidedcd.testing.tiny_transformer import tiny_transformer_teacher

            return tiny_transformer_teacher()
        from guidedcd.testing.tiny_teacher import tiny_teacher

        return tiny_teacher()
