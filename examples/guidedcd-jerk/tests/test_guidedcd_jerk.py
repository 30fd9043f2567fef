"""The energy `jerk` passes the conformance checks of guidedcd."""

import pytest

from guidedcd.testing import checks


@pytest.mark.parametrize("check", checks("energy", "jerk"), ids=str)
def test_conformance(check):
    """One rule holds."""
    check()
