"""The table of measured figures: files in the schema of the harness, and which of their rows the page shows."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def results(repository, monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    import results

    return results


RUN = {
    "date": "2026-01-01",
    "tiny": False,
    "machine": {"device": "NVIDIA H200", "torch": "2.11"},
}
ROWS = {
    "unet": {
        "stock, batch 4": {"ms_per_sample": 57.0},
        "fast, batch 8": {"ms_per_sample": 30.5, "peak_gb": 7.0},
        "broken, batch 4": None,
        "train fast, batch 3": {"ms": 400.0},
    },
    "preprocessing": {
        "encode, layers": {"seconds": 0.05},
        "one draw per video, blocks": {"samples_per_hour": 812.0, "seconds": 4.43},
        "score and prediction, layers": {"seconds": 0.1, "peak_gb": 25.0},
    },
    "training": {
        "cd/layers": {"seconds": 0.45, "peak_gb": 98.0},
        "cd-checkpointed/layers": {"seconds": 0.62, "peak_gb": 30.0},
        "cd-8bit-checkpointed/layers": {"seconds": 0.6, "peak_gb": 22.0},
        "all/layers": {"seconds": 0.6, "peak_gb": 90.0},
        "all-temporal/layers": {"seconds": 0.68, "peak_gb": 39.0},
        "lora/layers": None,
        "parallel-ddp/layers": {"seconds": 0.5, "times_one_gpu": 1.9},
    },
    "sampling": {"4 steps, graphs, batch 1": {"seconds": 0.21, "peak_gb": 4.0}},
}


def content(benchmark: str, **changes) -> dict:
    """A file that a script wrote; rows without values have an error."""
    rows = [
        {"name": name, "values": values} if values else {"name": name, "error": "OutOfMemoryError", "values": {}}
        for name, values in ROWS[benchmark].items()
    ]
    run = {"benchmark": benchmark, "command": f"python benchmarks/{benchmark}.py", **RUN, "rows": rows}
    return {"schema": 1, "runs": [{**run, **changes}]}


@pytest.fixture
def measured(results, tmp_path):
    """Every row above, read."""
    rows = []
    for name in ROWS:
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content(name)))
        rows += results.read(path)
    return results.merged([], rows)


def cells(results, measured, title: str) -> list[str]:
    """The cells of one line of the table."""
    (line,) = [line for line in results.table(measured).splitlines() if line.startswith(f"| {title} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_script_is_read(results, measured):
    """Rows of all four scripts reach the table, with the command that measured them; failures are no rows."""
    assert {row.name.split(":")[0] for row in measured} == set(ROWS)
    assert not any("broken" in row.name or "lora" in row.name for row in measured)
    assert cells(results, measured, "sampling 4 steps with decode")[2] == "**0.21 s, 4 GB**"
    assert "`python benchmarks/training.py`" in results.table(measured)


def test_the_setting_that_reaches_most_is_shown(results, measured):
    """Of two settings the slower one is shown that keeps both targets; an 8-bit one does not count for float32."""
    assert cells(results, measured, "CD + HPS + CLIP + InternVideo2 in one step")[4] == "all-temporal/layers"
    assert cells(results, measured, "CD step, batch 3, full fine-tuning")[4] == "cd/layers"
    assert cells(results, measured, "the same, float32 states, least memory")[2].startswith("**30 GB")
    assert cells(results, measured, "the same, 8-bit states")[4] == "cd-8bit-checkpointed/layers"


def test_reached_is_bold_and_missing_is_named(results, measured):
    """A figure within its targets is bold; one without a row is "not measured"; memory is in 2^30 bytes."""
    assert cells(results, measured, "UNet forward, per sample, best batch")[2] == "**30.5 ms, 7 GB**"
    assert cells(results, measured, "LoRA training step")[2] == "not measured"
    assert "25 GB" in cells(results, measured, "PTA score and conditional prediction, per sample, batch 4")[2]
    slow = [row for row in measured if "fast, batch" not in row.name]
    assert cells(results, slow, "UNet forward, per sample, best batch")[2] == "57 ms"


def test_newer_rows_replace_older_ones(results, measured):
    """A row is kept once for a device, the newer one; that of another GPU is kept as well."""
    import attrs

    (old,) = [row for row in measured if row.name.startswith("unet: fast")]
    newer = attrs.evolve(old, run={**old.run, "machine": {"device": "NVIDIA H200", "torch": "2.12"}})
    other = attrs.evolve(old, run={**old.run, "machine": {"device": "NVIDIA H100", "torch": "2.11"}})
    rows = results.merged(measured, [newer, other])

    assert len(rows) == len(measured) + 1
    assert newer in rows and old not in rows and other in rows


def test_rows_survive_a_file(results, measured, tmp_path):
    """What is written is read back as the same rows."""
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results.written(measured)))

    assert results.merged([], results.read(path)) == measured


@pytest.mark.parametrize("change", [{"machine": {"device": "cpu", "torch": "2.11"}}, {"tiny": True}])
def test_rows_of_a_cpu_and_of_tiny_networks_are_refused(results, tmp_path, change):
    """They do not reach the page."""
    path = tmp_path / "unet.json"
    path.write_text(json.dumps(content("unet", **change)))
    with pytest.raises(SystemExit, match="only full size on a GPU"):
        results.read(path)


def test_the_page_is_up_to_date(results):
    """The page of measured speed contains the table of benchmarks/results.json, as benchmarks/results.py writes it."""
    text = results.PAGE.read_text(encoding="utf-8")
    assert results.page(text, results.merged([], results.read(results.RESULTS))) == text
