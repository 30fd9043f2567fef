"""Which folder a run continues in."""

from __future__ import annotations

import json
from pathlib import Path

from toy_plugin import make

from guidedcd.training.run_folder import run_folder


def test_an_unfinished_run_of_an_older_version_is_continued(toy, tmp_path, monkeypatch):
    """Older versions wrote the key `energy`; the configuration is the same."""
    monkeypatch.chdir(tmp_path)
    run = make()
    older = {"energy" if key == "energies" else key: value for key, value in run.to_dict().items()}
    Path("runs/older").mkdir(parents=True)
    Path("runs/older/run.json").write_text(json.dumps(older))

    assert run_folder(run, None, new=False) == Path("runs/older")
    assert run_folder(make(seed=1), None, new=False) != Path("runs/older")
