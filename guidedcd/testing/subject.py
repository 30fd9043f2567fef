"""One component under test."""

from __future__ import annotations

from functools import cached_property
from typing import Any
from unittest import SkipTest

from guidedcd.errors import GuidedCDError
from guidedcd.plugins.registry import Component


class Subject:
    """One component under test, built once for all its checks."""

    def __init__(self, component: Component, config: Any = None) -> None:
        """Take a component, and the options to test it with (default: its defaults)."""
        self.component, self.config = component, config

    @cached_property
    def built(self) -> Any:
        """The component, made from its config.

        Raises:
            SkipTest: It cannot be made from its defaults, for want of a file.
        """
        try:
            return self.component.build(self.config)
        except GuidedCDError as error:
            if self.config is not None:
                raise
            raise SkipTest(f"needs options to be built: {error}") from error

    @cached_property
    def options(self) -> Any:
        """The config it is built from."""
        return self.component.config() if self.config is None else self.config

    @cached_property
    def teacher(self) -> Any:
        """A tiny teacher, shared by the checks."""
        from guidedcd.testing.tiny_teacher import tiny_teacher

        return tiny_teacher()
