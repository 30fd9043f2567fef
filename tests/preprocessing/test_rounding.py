"""The option `preprocess.quantize`: its printed error, and stores of their own."""

from __future__ import annotations

import re

import attrs
import pytest
from stores import shard_files
from toy_plugin import make

from guidedcd.errors import GuidedCDError
from guidedcd.models.teachers.contract import build_teacher
from guidedcd.preprocessing.identity import identify, may_use
from guidedcd.preprocessing.preprocess import preprocess
from guidedcd.preprocessing.verify import verify_store


def test_a_teacher_in_int8_has_a_store_of_its_own(toy, tmp_path, capsys):
    """The memory and the errors of the rounding are printed, the teacher stays whole, and its store is recomputable."""
    plain, run = make(), make(preprocess={"quantize": "int8"})
    teacher = build_teacher(run.teacher, "cpu")
    before = [weight.clone() for weight in teacher.network.parameters()]
    folder = preprocess(run, store_folder=tmp_path / "int8", teacher=teacher)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("weights"))

    errors = [float(number) for number in re.findall(r"([0-9.]+)%", line)]
    assert re.search(r"in int8: [0-9.]+ KB less; predictions differ by .* and gradients by", line)
    assert len(errors) == 2 and all(0 < error < 10 for error in errors)
    assert all((old == new).all() for old, new in zip(before, teacher.network.parameters(), strict=True))
    assert verify_store(folder, samples=1)["samples"]
    with pytest.raises(GuidedCDError, match="quantize"):
        preprocess(plain, store_folder=folder, teacher=teacher)
    assert shard_files(folder) != shard_files(preprocess(plain, store_folder=tmp_path / "plain", teacher=teacher))
    assert "weights" not in capsys.readouterr().out


def test_without_energies_no_gradient_is_measured(toy, tmp_path, capsys):
    """A run without energies prints the error of predictions alone."""
    run = attrs.evolve(make(preprocess={"quantize": "int8"}), energies={})
    preprocess(run, store_folder=tmp_path / "s")
    assert "predictions differ by" in (out := capsys.readouterr().out) and "gradients" not in out


def test_the_identity_has_the_option_only_where_it_is_used(toy):
    """Stores without the option keep their identity, and neither run may use the store of the other."""
    plain, run = make(), make(preprocess={"quantize": "int8"})
    teacher = build_teacher(plain.teacher, "cpu")
    assert "quantize" not in identify(plain, teacher) and identify(run, teacher)["quantize"] == "int8"
    assert run.to_dict()["preprocess"]["quantize"] == "int8"
    for one in (plain, run):
        for other in (plain, run):
            assert may_use(one, identify(other, teacher)) == (one is other)
