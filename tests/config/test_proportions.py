"""Options of a profile that count steps, in a run with fewer steps."""

from __future__ import annotations

from guidedcd.config.proportions import unscaled
from guidedcd.config.run import Run
from guidedcd.errors import on_command_line


def test_a_shorter_run_prints_the_profiles_proportions():
    """Options that are still the profile's are named with numbers in proportion; changed ones are not."""
    note = unscaled(Run.from_profile("shapes", train={"steps": 120}))
    other = unscaled(Run.from_profile("shapes", train={"steps": 120, "lr_schedule": {"cooldown": 30}}))

    assert note.endswith("In proportion: `train.guided_steps=100`, `train.lr_schedule.cooldown=38`")
    assert "cooldown" not in other and "`train.guided_steps=100`" in other
    with on_command_line():
        note = unscaled(Run.from_profile("shapes", train={"steps": 120}))
    assert note.endswith("In proportion: --train.guided-steps 100 --train.lr-schedule.cooldown 38")
    assert unscaled(Run.from_profile("shapes")) == ""
    assert unscaled(Run.from_profile("shapes", train={"steps": 500})) == ""
