"""The benchmark of an energy's cost, on the proving ground."""

from __future__ import annotations

import json

import pytest


def test_the_ratio_leaves_out_extremes(repository, monkeypatch):
    """A tenth of the pairs is left out, and the interval of equal ratios is their value."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    from energy_cost import ratio

    assert ratio([100.0, *[2.0] * 18, 0.1], [1.0] * 20) == {"times": 2.0, "times_low": 2.0, "times_high": 2.0}


@pytest.mark.slow
def test_every_energy_is_compared_with_the_step_without(repository, monkeypatch, tmp_path):
    """A row for the step without energies, and one with a ratio for each energy."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    import energy_cost

    out = tmp_path / "rows.json"
    energy_cost.main(["dynamics", "--device", "cpu", "--repeats", "2", "--warm-up", "1", "--out", str(out)])
    (run,) = json.loads(out.read_text())["runs"]
    without, dynamics = run["rows"]

    assert without["name"] == "without" and without["values"]["seconds"] > 0
    assert dynamics["values"]["times_low"] <= dynamics["values"]["times"] <= dynamics["values"]["times_high"]
