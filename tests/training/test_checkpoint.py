"""Checkpoints: their order, their checksums, and errors for damaged ones."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from short_training import trained
from toy_plugin import make

from guidedcd.errors import GuidedCDError
from guidedcd.files import file_digest, write_json
from guidedcd.training import checkpoint
from guidedcd.training.trainer import Trainer


def test_checkpoints_are_ordered_by_step(tmp_path):
    """A million steps come after 999,999; other folders do not count."""
    for name in ("step-1000000", "step-999999", "step-x", "step-\u00b2", ".step-000001.1.part"):
        (tmp_path / name).mkdir()

    assert [path.name for path in checkpoint.paths(tmp_path)] == ["step-999999", "step-1000000"]


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_can_be_left_out(toy, tmp_path, monkeypatch):
    """The message names the checkpoint; without it the run continues from the one before, to the same result."""
    run, store = make(), tmp_path / "s"
    straight = trained(run, tmp_path / "a", store)
    monkeypatch.setattr(Trainer, "write_student", lambda self, target: None)
    trained(run, tmp_path / "b", store)
    newest = checkpoint.paths(tmp_path / "b" / "checkpoints")[-1]
    for name in ("state.pt", "model.safetensors"):
        whole = (newest / name).read_bytes()
        (newest / name).write_bytes(whole[:100])
        with pytest.raises(GuidedCDError, match=r"checkpoint .*step-000004 is damaged.*Delete it"):
            trained(run, tmp_path / "b", store)
        (newest / name).write_bytes(whole)
    shutil.rmtree(newest)

    assert trained(run, tmp_path / "b", store) == straight


def test_a_file_in_the_place_of_the_checkpoints_is_an_error(tmp_path):
    """It is found before the first step, not when the first checkpoint is written."""
    (tmp_path / "checkpoints").touch()
    with pytest.raises(GuidedCDError, match="checkpoints is not a folder.*Move it away"):
        checkpoint.paths(tmp_path / "checkpoints")


def test_a_checkpoint_of_other_energies_is_refused(tmp_path):
    """Weights fit a student with as many other energies, so their names are compared before anything is loaded."""
    folder = saved_student(tmp_path, {"energies": ["calm", "pta"], "format": 1})
    with pytest.raises(GuidedCDError, match="the energies calm, pta, but the run has no energy.*another"):
        checkpoint.load(folder, None, None, student=SimpleNamespace(energies=(), format=1))


def test_a_checkpoint_of_another_format_is_refused(tmp_path):
    """Its weights would fit, and the student would compute something else with them."""
    folder = saved_student(tmp_path, {"energies": [], "format": 1})
    with pytest.raises(GuidedCDError, match=r"another version of guidedcd \(format 1\)\. Move it away"):
        checkpoint.load(folder, None, None, student=SimpleNamespace(energies=(), format=2))


def saved_student(folder: Path, content: dict) -> Path:
    """A checkpoint that contains student.json alone."""
    checkpoint_folder = folder / "step-000002"
    checkpoint_folder.mkdir()
    write_json(checkpoint_folder / "student.json", content)
    checksum = file_digest(checkpoint_folder / "student.json")
    write_json(checkpoint_folder / "checksums.json", {"step": 2, "sha256": {"student.json": checksum}})
    return checkpoint_folder


def test_checkpoints_that_may_not_be_listed_are_an_error(tmp_path, monkeypatch):
    """A run whose checkpoints may not be read does not begin again, which would lose its log."""

    def denied(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(GuidedCDError, match="no permission to read"):
        checkpoint.paths(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "words"),
    [
        (lambda moment: torch.zeros(7), "exp_avg of weight 0 has another shape"),
        (lambda moment: torch.full_like(moment, float("nan")), "exp_avg of weight 0 is not finite"),
    ],
    ids=["shape", "nan"],
)
def test_a_checkpoint_with_wrong_moments_is_refused(toy, tmp_path, monkeypatch, moment, words):
    """A state whose checksum is right, but whose moments are not, is refused before the next step."""
    run, store = make(), tmp_path / "s"
    monkeypatch.setattr(Trainer, "write_student", lambda self, target: None)
    trained(run, tmp_path / "run", store)
    newest = checkpoint.paths(tmp_path / "run" / "checkpoints")[-1]
    state = torch.load(newest / "state.pt", weights_only=True)
    state["optimizer"]["state"][0]["exp_avg"] = moment(state["optimizer"]["state"][0]["exp_avg"])
    torch.save(state, newest / "state.pt")
    sums = {path.name: file_digest(path) for path in newest.iterdir() if path.name != "checksums.json"}
    write_json(newest / "checksums.json", {"step": state["step"], "sha256": sums})

    log = (tmp_path / "run" / "log.jsonl").read_text()
    with pytest.raises(GuidedCDError, match=rf"is damaged \(the optimiser's {words}"):
        trained(run, tmp_path / "run", store)
    assert (tmp_path / "run" / "log.jsonl").read_text() == log


def damage_bit(folder: Path) -> None:
    """One bit of the weights flips."""
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_bit, "the checksum of model.safetensors differs"),
        (lambda folder: shutil.copy(folder / "model.safetensors", folder / "state.pt"), "checksum of state.pt differs"),
        (
            lambda folder: write_json(folder / "checksums.json", {"step": 4, "sha256": {}}),
            "checksums.json has no checksum of ",
        ),
        (lambda folder: (folder / "state.pt").unlink(), "state.pt is missing"),
        (lambda folder: (folder / "checksums.json").unlink(), r"checksums.json is missing"),
        (
            lambda folder: (folder / "checksums.json").write_text("[1]"),
            "contains a list of 1; it must contain an object",
        ),
        (lambda folder: folder.rename(folder.with_name("step-000009")), "its files, which are of step 4"),
    ],
    ids=["bit", "foreign", "unlisted", "missing", "unsigned", "form", "renamed"],
)
def test_a_checkpoint_is_what_was_written(tmp_path, damage, words):
    """Files that changed, are gone or are another step's are found before the run continues from them."""
    folder = tmp_path / "step-000004"
    folder.mkdir()
    for name in ("model.safetensors", "state.pt"):
        (folder / name).write_text(name)
    sums = {path.name: file_digest(path) for path in folder.iterdir()}
    write_json(folder / "checksums.json", {"step": 4, "sha256": sums})
    checkpoint.verify(folder)

    damage(folder)
    with pytest.raises(GuidedCDError, match=rf"checkpoint .* is damaged \(.*{words}.*Delete it"):
        checkpoint.verify(checkpoint.paths(tmp_path)[0])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_checkpoint_without_permission_is_not_called_damaged(tmp_path):
    """Nothing advises to delete what may be sound."""
    folder = tmp_path / "step-000004"
    folder.mkdir()
    (folder / "checksums.json").touch(mode=0)
    with pytest.raises(GuidedCDError, match="no permission to read") as error:
        checkpoint.verify(folder)

    assert "Delete" not in str(error.value)


@pytest.mark.slow
def test_checkpoints_of_an_average_can_be_sampled(toy, tmp_path):
    """A checkpoint's model.safetensors is the average, its online.safetensors what training goes on from."""
    run = make(train={"average": 0.5})
    trained(run, tmp_path / "a", tmp_path / "s")
    newest = checkpoint.paths(tmp_path / "a" / "checkpoints")[-1]
    mean, online = (load_file(newest / f"{name}.safetensors") for name in ("model", "online"))

    assert mean.keys() == online.keys()
    assert any(not torch.equal(mean[key], online[key]) for key in mean)
