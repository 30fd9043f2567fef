"""`jerk` keeps the rules of every energy."""

import pytest

from guidedcd.testing import checks


@pytest.mark.parametrize("check", checks("energy", "jerk"), ids=str)
def test_conformance(check):
    """One rule, on a tiny teacher where it needs one."""
    check()
