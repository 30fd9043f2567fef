"""The published numbers of the method, through the command that anyone can run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from guidedcd.errors import GuidedCDError
from guidedcd.parity import Tolerance, method
from guidedcd.parity.__main__ import run
from guidedcd.parity.attention import sorted_last
from guidedcd.parity.compare import compare_json, compare_tensors

DATA = Path(__file__).parents[1] / "goldens" / "method"


def parity(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own: MKL's mode is chosen before its first use."""
    command = [sys.executable, "-m", "guidedcd.parity", *map(str, arguments), "--threads", "1"]
    environment = os.environ | {"COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def agrees(folder: Path) -> None:
    """Everything in `folder` is computed, within the fixtures' tolerances."""
    results = method.compute(folder)
    rows = []
    for name, values in results.items():
        compare = compare_tensors if name.endswith(".safetensors") else compare_json
        file = f"{folder.name}/{name}"
        if (folder / name).is_file():
            rows += compare(folder / name, values, lambda key, file=file: method.tolerance(file, key))
    wrong = [row for row in rows if not row.ok]

    assert rows and not wrong


@pytest.mark.parametrize("family", ["pta", "schedule"])
def test_the_small_numbers_agree(family):
    """Timesteps, guided windows, attention masks, energies and their gradients equal the published ones."""
    agrees(DATA / family)


@pytest.mark.parametrize("family", ["schedule", "ddim", "pta"])
def test_the_tables_agree(shared, family):
    """Attention maps, noise levels, grids, scalings, embeddings, few-step trajectories and DDIM steps all agree."""
    agrees(shared("method", family))


@pytest.mark.slow
def test_the_networks_agree(shared, tmp_path):
    """Forward passes, Algorithm 1, training steps with every gradient, and sampling equal the published numbers.

    In a process of its own, where MKL's mode is chosen before its first use; the whole set takes the command a minute.
    """
    chosen = {
        "tiny_unet": "*",
        "algorithm1": "[!g]*,golden_f64*",
        "cd_step": "golden.json,mixed_200*,vcm_200*",
        "sampling": "golden.json,steps4*",
    }
    for family, patterns in chosen.items():
        (tmp_path / "in" / family).mkdir(parents=True)
        for path in {p for pattern in patterns.split(",") for p in shared("method", family).glob(pattern)}:
            (tmp_path / "in" / family / path.name).symlink_to(path)
    done = parity(tmp_path / "in", "--out", tmp_path / "out", "--compare")

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert {"golden_f64.json", "golden_f64.safetensors", "attention_f64run.safetensors"} == names(
        tmp_path / "out" / "algorithm1"
    )


@pytest.mark.slow
def test_only_inputs_are_read(tmp_path):
    """Wrong outputs in a golden file change no result, and the command finds them."""
    good = DATA / "pta" / "ties.safetensors"
    spoilt = {k: v if k.endswith((".ref", ".gen")) else torch.ones_like(v) for k, v in load_file(good).items()}
    (tmp_path / "pta").mkdir()
    save_file(spoilt, tmp_path / "pta" / "ties.safetensors")
    done = parity(tmp_path, "--out", tmp_path / "out", "--compare")
    out = load_file(tmp_path / "out" / "pta" / "ties.safetensors")

    assert done.returncode == 1 and "NO" in done.stdout
    assert all(row.ok for row in compare_tensors(good, out, lambda key: method.tolerance("pta/ties.safetensors", key)))


def test_names_come_from_the_file(tmp_path):
    """Grids, widths, windows and layers other than the published ones are computed under the names in the file."""
    folder = tmp_path / "any"
    folder.mkdir()
    keys = {"emb.w": torch.tensor([3.0]), "emb.dim10": torch.zeros(1, 10), "ddim33.timesteps": torch.zeros(33)}
    save_file(keys | {"scalings.t": torch.tensor([0, 7])}, folder / "t.safetensors")
    rows = torch.rand(2, 3, 3, dtype=torch.float64).softmax(-1)
    save_file({f"up.{i}.{k}": rows.clone() for i in (10, 9) for k in ("ref", "gen")}, folder / "maps.safetensors")
    (folder / "times.json").write_text(json.dumps({"origin100.steps7": None}))
    (folder / "flags.json").write_text(json.dumps({"inference": {"steps2.p0.25": 0}, "thresholds": {"N33.p0.37": {}}}))
    results = method.compute(folder)

    assert results["t.safetensors"]["emb.dim10"].shape == (1, 10)
    assert results["t.safetensors"]["ddim33.timesteps"][-1] == 989
    assert results["maps.json"]["layers"] == ["up.9", "up.10"]
    assert results["maps.json"]["official_compute_temp_loss"] == 0.0
    assert results["times.json"]["origin100.steps7"] == [999, 859, 719, 579, 439, 299, 159]
    assert results["flags.json"]["inference"]["steps2.p0.25"] == [True, False]
    assert results["flags.json"]["thresholds"]["N33.p0.37"]["train_first_guided_index"] == 21


@pytest.fixture
def failures(monkeypatch):
    """The list of failures of one command, empty before and after."""
    monkeypatch.setattr("guidedcd.parity.FAILURES", failures := [])
    monkeypatch.setattr("guidedcd.parity.__main__.FAILURES", failures)
    return failures


def test_one_file_or_one_family(tmp_path, failures):
    """FOLDER may be a family or one file of it; OUT has the golden's names below."""
    shutil.copytree(DATA / "pta", tmp_path / "in")
    shutil.copy(tmp_path / "in" / "ties.safetensors", tmp_path / "in" / "other.safetensors")
    assert run(tmp_path / "in", out=tmp_path / "family") == 0
    assert run(tmp_path / "in" / "ties.safetensors", out=tmp_path / "file") == 0

    assert {"other.json", "other.safetensors", "ties.json", "ties.safetensors"} == names(tmp_path / "family")
    assert {"ties.json", "ties.safetensors"} == names(tmp_path / "file")
    with safe_open(DATA / "pta" / "ties.safetensors", "pt") as golden:
        assert set(golden.keys()) == set(load_file(tmp_path / "file" / "ties.safetensors"))


def names(folder: Path) -> set[str]:
    """File names in a folder."""
    return {path.name for path in folder.iterdir()}


def test_one_bad_file_does_not_hide_the_others(tmp_path, failures):
    """What cannot be computed is named, the rest is written, and the exit status is 1."""
    shutil.copytree(DATA / "pta", tmp_path / "in")
    save_file({"batch.z_t": torch.zeros(1)}, tmp_path / "in" / "bad_step.safetensors")

    assert run(tmp_path / "in", out=tmp_path / "out") == 1
    assert "bad_step.safetensors" in failures[0]
    assert "ties.safetensors" in names(tmp_path / "out")


def test_a_folder_without_fixtures_is_a_users_mistake(tmp_path, failures):
    """Nothing to compute, or no such folder, is one sentence."""
    (tmp_path / "notes.txt").write_text("nothing here")
    for folder, words in ((tmp_path, "contains no fixture"), (tmp_path / "nowhere", "does not exist")):
        with pytest.raises(GuidedCDError, match=words):
            run(folder, out=tmp_path / "out")


def test_the_released_mask_has_one_largest_entry():
    """Which of equal entries a sort returns is open, but it is one per row and a largest one."""
    maps = load_file(DATA / "pta" / "ties.safetensors")["layer0.ref"]
    mask = sorted_last(maps)

    assert (mask.sum(-1) == 1).all()
    assert torch.equal(maps[mask].view(maps.shape[:-1]), maps.amax(-1))


def test_comparison_finds_what_is_wrong(tmp_path):
    """Missing tensors, other shapes, errors beyond the limit, and integers that are off by one all fail."""
    golden = {"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(2), "n": torch.tensor([1]), "good": torch.ones(2)}
    save_file(golden, tmp_path / "g.safetensors")
    ours = {"b": torch.ones(3), "c": torch.ones(2) + 0.1, "n": torch.tensor([2]), "good": torch.ones(2) + 0.001}
    rows = compare_tensors(tmp_path / "g.safetensors", ours, lambda key: Tolerance(0.01, 0.0))
    (tmp_path / "g.json").write_text(json.dumps({"x": {"y": 1.0, "z": [True, None]}, "n": 3, "name": "a", "note": "-"}))
    values = {"x": {"y": 1.001, "z": [True, False]}, "n": 4, "name": "a"}
    numbers = compare_json(tmp_path / "g.json", values, lambda key: Tolerance(0.01, 1.0))

    assert {row.key: row.ok for row in rows} == {"a": False, "b": False, "c": False, "n": False, "good": True}
    assert {row.key: row.ok for row in numbers} == {"x/y": True, "x/z": False, "n": False, "name": True}
