"""The benchmark of an energy's cost, on the proving ground."""

from __future__ import annotations

import pytest


def test_the_ratio_leaves_out_extremes(script):
    """A tenth of the pairs is left out, and the interval of equal ratios is their value."""
    ratio = script("energy_cost").ratio

    assert ratio([100.0, *[2.0] * 18, 0.1], [1.0] * 20) == {"times": 2.0, "times_low": 2.0, "times_high": 2.0}


@pytest.mark.slow
def test_every_energy_is_compared_with_the_step_without(script, rows_of, tmp_path):
    """A row for the step without energies, and one with a ratio for each energy."""
    out = tmp_path / "rows.json"
    script("energy_cost").main(["dynamics", "--device", "cpu", "--repeats", "2", "--warm-up", "1", "--out", str(out)])
    without, dynamics = rows_of(out).values()

    assert without["name"] == "without" and without["values"]["seconds"] > 0
    assert dynamics["values"]["times_low"] <= dynamics["values"]["times"] <= dynamics["values"]["times_high"]
