"""The table of measured figures: what the benchmark scripts write, and which of it the page shows."""

from __future__ import annotations

import importlib.util
import json

import pytest


@pytest.fixture
def results(repository):
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("results", repository / "benchmarks" / "results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MACHINE = {"gpu": "NVIDIA H200", "torch": "2.11"}
FILES = {
    "unet": {
        "machine": MACHINE,
        "rows": [
            {"what": "built"},
            {"name": "stock", "kind": "forward", "batch": 4, "ms_per_sample": 57.0},
            {"name": "fast", "kind": "forward", "batch": 8, "ms_per_sample": 30.5, "peak_gb": 7.0},
            {"name": "broken", "kind": "forward", "batch": 4, "error": "no memory"},
            {"name": "train fast", "kind": "train", "batch": 3, "ms": 400.0},
        ],
    },
    "preprocess": {
        "machine": MACHINE,
        "rows": [
            {"part": "encode", "seconds_per_row": 0.05},
            {"figure": "one draw per video", "fast": "blocks", "ours": 812.0, "unit": "samples per hour"},
            {"figure": "score and prediction", "fast": "layers", "ours": 0.1, "unit": "s per sample"},
            {"figure": "score and prediction, GB", "fast": "layers", "ours": 25.0, "unit": "GB at the peak"},
        ],
    },
    "train": {
        "device": "NVIDIA H200",
        "torch": "2.11",
        "figures": [
            {"figure": "cd/layers", "seconds": 0.45, "gb": 98.0},
            {"figure": "cd-checkpointed/layers", "seconds": 0.62, "gb": 30.0},
            {"figure": "cd-8bit-checkpointed/layers", "seconds": 0.6, "gb": 22.0},
            {"figure": "all/layers", "seconds": 0.6, "gb": 90.0},
            {"figure": "all-temporal/layers", "seconds": 0.68, "gb": 39.0},
            {"figure": "lora/layers", "failed": "no memory"},
            {"figure": "parallel-ddp/layers", "seconds": 0.5, "times_one": 1.9},
        ],
    },
    "sampling": {
        "machine": MACHINE,
        "rows": [{"name": "graphs", "steps": 4, "batch": 1, "seconds_per_video": 0.21, "peak_gb": 4.0}],
    },
}


@pytest.fixture
def measured(results, tmp_path):
    """Everything above, read."""
    found = []
    for name, content in FILES.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        found += results.read(path, None, "2026-01-01")
    return results.merged([], found)


def row(results, measured, title: str) -> list[str]:
    """The cells of one line of the table."""
    (line,) = [line for line in results.table(measured).splitlines() if line.startswith(f"| {title} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_script_is_read(results, measured):
    """Figures of all four scripts reach the table, with the command that made them; failures are no figures."""
    assert {one["setting"].split(":")[0] for one in measured} == set(FILES)
    assert not any("broken" in one["setting"] or "lora" in one["setting"] for one in measured)
    assert row(results, measured, "sampling 4 steps with decode")[2] == "**0.21 s, 4 GB**"
    assert "`python benchmarks/training.py`" in results.table(measured)


def test_the_setting_that_reaches_most_is_shown(results, measured):
    """Of two settings the slower one is shown that keeps both limits; an 8-bit one does not count for float32."""
    assert row(results, measured, "CD + HPS + CLIP + InternVideo2 in one step")[4] == "all-temporal/layers"
    assert row(results, measured, "CD step, batch 3, full fine-tuning")[4] == "cd/layers"
    assert row(results, measured, "the same, float32 states, least memory")[2].startswith("**30 GB")
    assert row(results, measured, "the same, 8-bit states")[4] == "cd-8bit-checkpointed/layers"


def test_reached_is_bold_and_missing_is_said(results, measured):
    """A figure within its limits is bold; one that nobody measured says so; memory is in 2^30 bytes."""
    assert row(results, measured, "UNet forward, per sample, best batch")[2] == "**30.5 ms**"
    assert row(results, measured, "LoRA training step")[2] == "not measured"
    assert "25 GB" in row(results, measured, "PTA score and conditional prediction, per sample, batch 4")[2]
    slow = [one for one in measured if "fast, batch" not in one["setting"]]
    assert row(results, slow, "UNet forward, per sample, best batch")[2] == "57 ms"


def test_newer_measurements_replace_older_ones(results, measured):
    """The same setting on the same GPU is kept once, the newer one; on another GPU beside it."""
    (old,) = [one for one in measured if one["setting"].startswith("unet: fast")]
    newer = {**old, "values": {"ms": 29.0}, "machine": "NVIDIA H200, torch 2.12"}
    other = {**old, "machine": "NVIDIA H100, torch 2.11"}
    found = results.merged(measured, [newer, other])

    assert len(found) == len(measured) + 1
    assert newer in found and old not in found and other in found


def test_figures_of_a_cpu_are_refused(results, tmp_path):
    """What a script wrote with --tiny on a CPU does not reach the page."""
    path = tmp_path / "unet.json"
    path.write_text(json.dumps({**FILES["unet"], "machine": {"gpu": "cpu", "torch": "2.11"}}))
    with pytest.raises(SystemExit, match="measured on a GPU"):
        list(results.read(path, None, None))


def test_the_page_is_up_to_date(results):
    """The page of measured speed contains the table of benchmarks/results.json, as benchmarks/results.py writes it."""
    text = results.PAGE.read_text(encoding="utf-8")
    assert results.page(text, json.loads(results.KEPT.read_text(encoding="utf-8"))) == text
