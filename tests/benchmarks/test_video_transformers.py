"""The benchmark of video transformers, with tiny networks on the CPU."""

from __future__ import annotations

import pytest

from guidedcd.errors import GuidedCDError


@pytest.mark.slow
def test_every_row_is_measured(script, rows_of, tmp_path):
    """Passes, steps, preprocessing and loading give times, stock and fast agree, and a step has a finite loss."""
    out = tmp_path / "rows.json"
    command = ["--tiny", "--device", "cpu", "--repeats", "1", "--warm-up", "0", "--out", str(out)]
    script("video_transformers").main(command)
    rows = rows_of(out)

    assert not [row for row in rows.values() if "error" in row]
    assert all(row["values"]["seconds"] > 0 for row in rows.values())
    passes = {name: row for name, row in rows.items() if name.startswith("forward")}
    assert len(passes) == 10 and all(row["details"]["relative_error"] < 1e-5 for row in passes.values())
    assert rows["preprocess small/no"]["values"]["samples_per_hour"] > 0
    assert rows["lora large/no"]["details"]["grad_norm"] > 0
    assert rows["loading"]["values"]["times_reading"] > 0


def test_no_row_begins_when_the_time_is_over(script, capsys):
    """With a budget of nothing every row has an error that states it."""
    script("video_transformers").main(["--tiny", "--only", "cd small/*,loading", "--budget", "0"])

    assert capsys.readouterr().out.count("the budget of 0 s is spent") == 4


def test_flash_attention_needs_a_gpu(script):
    """The option of another FlashAttention is that of training, with its error on a CPU."""
    with pytest.raises(GuidedCDError, match="flash-attention FA4 needs an NVIDIA GPU"):
        script("video_transformers").main(["--tiny", "--device", "cpu", "--flash-attention", "FA4"])
