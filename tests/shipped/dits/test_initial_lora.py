"""Students that start from a LoRA file: `--student.init`."""

from __future__ import annotations

import attrs
import pytest
import tiny_pipelines
import torch
from guidedcd_dits import lora_files
from guidedcd_dits.lora_files import Adapter
from guidedcd_dits.lora_names import family_of
from torch import nn

from guidedcd.config import sections
from guidedcd.errors import GuidedCDError
from guidedcd.models import initial_lora
from guidedcd.models.student import Student

FIRST = {family: next(iter(sizes)) for family, sizes in tiny_pipelines.SIZES.items()}
"""The first size of each family."""


def write_file(network: nn.Module, path) -> Adapter:
    """Write a random LoRA for the attention of the first block, in diffusers' layout."""
    generator = torch.Generator().manual_seed(1)
    pairs = {}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear) and "blocks.0.attn1.to_" in name:
            down = torch.randn(3, layer.in_features, generator=generator) * 0.3
            pairs[name] = (down, torch.randn(layer.out_features, 3, generator=generator) * 0.3)
    adapter = Adapter(pairs)
    lora_files.write(path, *lora_files.diffusers_state(adapter))
    return adapter


@pytest.mark.parametrize("family", FIRST)
def test_a_student_starts_from_the_file(family, tiny, tmp_path):
    """Its weights are the teacher's plus the file's change, and the teacher keeps its own."""
    teacher = tiny(family, FIRST[family]).teacher.teacher
    path = tmp_path / "lora.safetensors"
    adapter = write_file(teacher.network, path)
    before = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    initial_lora.check(teacher, str(path))
    student = Student(teacher, sections.Student(init=str(path)))
    changes, state = adapter.changes(), student.network.state_dict()
    assert len(changes) == 4
    for name, value in before.items():
        torch.testing.assert_close(state[name], value + changes.get(name, 0), rtol=1e-6, atol=1e-6)
        assert torch.equal(teacher.network.state_dict()[name], value)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_saved_student_is_the_same(kind, tiny, tmp_path):
    """A full student needs the file no more; adapters need it, and the same one as in training."""
    teacher = tiny("wan", FIRST["wan"]).teacher.teacher
    path = tmp_path / "lora.safetensors"
    write_file(teacher.network, path)
    config = sections.Student(kind=kind, rank=2, init=str(path))
    student = Student(teacher, config)
    with torch.no_grad():
        for parameter in student.trainable:
            parameter.add_(0.1)
    student.save(tmp_path / "student")
    if kind == "full":
        path.unlink()
    again = Student.load(tmp_path / "student", teacher)
    for name, value in student.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], value), name
    assert again.config == config
    if kind == "lora":
        other = Adapter(
            {name: (2 * down, up) for name, (down, up) in lora_files.read(path, teacher.network).pairs.items()}
        )
        lora_files.write(path, *lora_files.diffusers_state(other))
        with pytest.raises(GuidedCDError, match="adapters that were trained on another LoRA file"):
            Student.load(tmp_path / "student", teacher)
        path.unlink()
        with pytest.raises(GuidedCDError, match="student.init` .* cannot be read"):
            Student.load(tmp_path / "student", teacher)


def test_a_wrong_start_is_one_sentence(tiny, tmp_path):
    """A missing file, one of another base, and a teacher that reads none are refused before the training."""
    teacher = tiny("wan", FIRST["wan"]).teacher.teacher
    with pytest.raises(GuidedCDError, match="there is no LoRA file"):
        initial_lora.check(teacher, str(tmp_path / "none.safetensors"))
    name, (down, up) = next(iter(write_file(teacher.network, tmp_path / "a.safetensors").pairs.items()))
    wide = Adapter({name: (torch.cat([down, down], 1), up)})
    lora_files.write(tmp_path / "b.safetensors", *lora_files.native_state(wide, family_of(teacher.network)))
    with pytest.raises(GuidedCDError, match="it belongs to another base"):
        initial_lora.check(teacher, str(tmp_path / "b.safetensors"))

    @attrs.define
    class Other:
        network: nn.Module

    with pytest.raises(GuidedCDError, match="needs a teacher that reads LoRA files"):
        initial_lora.check(Other(nn.Linear(1, 1)), "x")
