"""The benchmark of predictions, with the sizes of tiny folders on the CPU."""

from __future__ import annotations

import pytest
import tiny_pipelines


@pytest.mark.slow
@pytest.mark.parametrize(("profile", "name"), [("wan-a14b-high", "experts"), ("wan-5b", "tokens")])
def test_a_profile_is_measured_beside_its_plan(script, rows_of, tmp_path, profile, name):
    """The pass and the step of a profile have measured and predicted seconds, and the step a predicted memory."""
    sizes = dict(tiny_pipelines.SIZES["wan"][name])
    size = sizes.pop("size")
    tiny_pipelines.wan(tmp_path / "wan", **sizes)
    flags = [text for key, value in size.items() for text in (f"--{key}", str(value))]
    options = ["--device", "cpu", "--repeats", "1", "--warm-up", "0", "--fast", "no", "--out", str(tmp_path / "rows")]
    script("planned").main([profile, "--folder", str(tmp_path / "wan"), *flags, *options])
    rows = rows_of(tmp_path / "rows")

    assert list(rows) == [f"{profile} pass/no", f"{profile} step/no"]
    for row in rows.values():
        measured, details = row["values"]["seconds"], row["details"]
        assert measured > 0 and details["times"] == pytest.approx(measured / details["predicted_s"], rel=1e-4)
    assert rows[f"{profile} step/no"]["details"]["predicted_gb"] > 0
