"""Energies of the output in training: no preprocessing, no passes, the scores that the stored way would have given."""

from __future__ import annotations

import attrs
import pytest
import torch
from short_training import interrupted, trained
from toy_plugin import make

import guidedcd
from guidedcd import OutputEnergyConfig, Run
from guidedcd.diffusion.guiders import combine
from guidedcd.diffusion.seen import Seen
from guidedcd.energies.gradients import EnergyTerm, energy_gradients
from guidedcd.energies.output import OutputGradients
from guidedcd.energies.traits import output_names, stored_part
from guidedcd.errors import GuidedCDError
from guidedcd.planning.estimate import Estimator
from guidedcd.planning.gpus import machine
from guidedcd.preprocessing import preprocess as preprocessing
from guidedcd.preprocessing.estimates import passes, reference_kinds, store_bytes
from guidedcd.preprocessing.preprocess import preprocess
from guidedcd.preprocessing.show import show_store
from guidedcd.preprocessing.store import open_store
from guidedcd.training.batches import Batches
from guidedcd.training.losses import NoisyBatch

OUTPUT = {"x0-motion": {"relative": 0.2}, "saturation": {"reference": "clean", "scale": 3.0, "fraction": 1.0}}


def mixed(**changes) -> Run:
    """The toy run with an energy through the network and two of the output."""
    return make(energy=OUTPUT, **changes)


def batch_of(run: Run, store, number: int = 0):
    """A batch of the run."""
    options = {"readers": {}, "rules": [], "energies": run.energies, "size": 4}
    return Batches(store, omega=run.solver.omega, seed=run.seed, **options)(number)


def noisy(run: Run, batch, teacher, dtype=torch.float64) -> NoisyBatch:
    """The batch with noise, in float64."""
    tensors = ("z0", "noise", "cond_output", "uncond_output")
    wide = attrs.evolve(batch, **{name: getattr(batch, name).to(dtype) for name in tensors})
    grid = teacher.schedule.grid(run.solver.steps)
    outputs = OutputGradients(run, teacher)
    options = {"grid": grid, "solver": run.solver, "energies": run.energies, "outputs": outputs}
    return NoisyBatch(lambda z, *rest: z, teacher.schedule, wide, **options)


class StoredWay:
    """A teacher whose pass is the stored prediction with the caption: as a network, but with a constant output."""

    def __init__(self, teacher, step) -> None:
        self.schedule, self.step = teacher.schedule, step

    def seen(self, z, t, cond, needs=(), captions=()):
        alpha, sigma = self.schedule.alpha_sigma(t)
        guided = combine(self.step.o_c, self.step.o_u, self.step.omega)
        outputs = {"output": self.step.o_c, "guided_output": guided, "prediction": self.schedule.prediction}
        return Seen(z=z, t=t, alpha=alpha, sigma=sigma, captions=captions, **outputs)


@pytest.mark.slow
def test_the_score_in_training_is_the_stored_one(toy, tmp_path):
    """In float64 the training step's score equals that of a pass through a constant network, to 1e-9."""
    run = mixed()
    store = open_store(run, preprocess(run, store_folder=tmp_path / "s"))
    teacher, batch = run.teacher.build(), batch_of(run, store)
    now = noisy(run, batch, teacher)
    scores = now._output_scores()
    built = {name: run.build("energy")[name] for name in OUTPUT}
    own, clean = StoredWay(teacher, attrs.evolve(now._step, omega=0 * now._step.omega)), now.batch.z0
    references = {"x0-motion": own.seen(now.z, now.t, {}), "saturation": None}
    zero = torch.zeros(4)
    references["saturation"] = attrs.evolve(
        references["x0-motion"], z=clean, alpha=zero + 1, sigma=zero, output=0 * clean, guided_output=0 * clean
    )
    for name, energy in built.items():
        term = EnergyTerm(name=name, energy=energy, reference=references[name])
        _, (expected,) = energy_gradients(StoredWay(teacher, now._step), now.z, now.t, {}, [term])
        assert expected.abs().max() > 0
        torch.testing.assert_close(scores[name], expected, rtol=1e-9, atol=1e-15)
    assert set(batch.scores) == {"toy"} and output_names(run) == list(OUTPUT)


@pytest.mark.slow
def test_all_kinds_guide_one_step(toy, tmp_path):
    """A stored score and two of the output enter one step, each with its own strength; their shares are measured."""
    run = mixed()
    store = open_store(run, preprocess(run, store_folder=tmp_path / "s"))
    teacher, batch = run.teacher.build(), batch_of(run, store)
    now = noisy(run, batch, teacher, torch.float32)
    now.student = lambda z, t, *rest: z
    now.consistency_loss()

    guided = batch.strengths[:, 0] > 0
    assert guided.any() and list(now.shares) == ["toy", "x0-motion", "saturation"]
    assert float(now.shares["toy"]) == pytest.approx(0.3, rel=1e-4)
    assert float(now.shares["x0-motion"]) == pytest.approx(0.2, rel=1e-4)
    assert (batch.strengths[:, 2] > 0).all() and float(now.shares["saturation"]) > 0


@pytest.mark.slow
def test_a_store_does_not_depend_on_energies_of_the_output(toy, tmp_path, monkeypatch, capsys):
    """Another strength, option or energy of the output computes nothing again, and leaves every file as it is."""
    folder = preprocess(stored_part(mixed()), store_folder=tmp_path / "s")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(preprocessing, "_compute", None)
    capsys.readouterr()
    preprocess(mixed(), store_folder=folder)
    preprocess(make(energy={"x0-motion": {"relative": 0.9, "span": 1}, "dynamics": {}}), store_folder=folder)

    assert all(path.read_bytes() == content for path, content in before.items())
    printed = " ".join(capsys.readouterr().out.split())
    assert "x0-motion: 20 % of the prediction" in printed and "x0-motion: 90 % of the prediction" in printed
    show_store(folder)
    printed = " ".join(capsys.readouterr().out.split())
    assert "x0-motion (prediction) of the output, which training computes, guidedcd/output-energies" in printed
    assert "x0-motion: 20 % of the prediction" in printed and "saturation (clean)" in printed


@pytest.mark.slow
def test_an_energy_of_the_output_costs_no_passes(toy):
    """Passes, bytes and the cost of preprocessing are those of the run without it."""
    run, alone = mixed(), make()
    gpu = machine(torch.device("cpu"), like="h100")

    assert passes(run) == passes(alone) and store_bytes(run, 96, 24) == store_bytes(alone, 96, 24)
    assert reference_kinds(run) == {"toy": "inversion"}
    one, other = (Estimator(gpu).preprocess(chosen, largest=False) for chosen in (run, alone))
    assert one == other


@pytest.mark.slow
def test_a_run_resumes_to_the_last_byte(toy, tmp_path, monkeypatch):
    """Interrupted and continued, a run with all kinds of energies writes the log and the student of a whole one."""
    run = mixed()
    store = preprocess(run, store_folder=tmp_path / "store")
    whole = trained(run, tmp_path / "whole", store)
    with interrupted(monkeypatch, 4):
        trained(run, tmp_path / "part", store)
    resumed = trained(run, tmp_path / "part", store)

    assert resumed == whole and any("share/x0-motion" in line for line in whole)
    files = [(tmp_path / name / "student" / "model.safetensors").read_bytes() for name in ("whole", "part")]
    assert files[0] == files[1]


def root(seen, reference):
    """An energy whose gradient is infinite where the prediction is half of the reference's."""
    return (seen.guided * 0).sqrt().flatten(1).sum(1)


root.through, root.config = "output", OutputEnergyConfig(scale=1.0)


def test_a_wrong_energy_stops_the_run_before_the_store(toy, tmp_path):
    """The gradient is taken once on noise before anything is written."""
    run = _with(root)
    with pytest.raises(GuidedCDError, match="energy 'root' of this program gave a gradient that is not finite"):
        preprocess(run, store_folder=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_training_names_an_energy_whose_gradient_is_not_finite(toy, tmp_path, monkeypatch):
    """A gradient that becomes infinite in training stops it, though a relative strength of it would be 0."""
    run = _with(root)
    monkeypatch.setattr(OutputGradients, "rehearse", lambda *_: None)
    monkeypatch.setattr(preprocessing.output_shares, "print_shares", lambda *_: None)
    with pytest.raises(GuidedCDError, match="the gradient of energy 'root' of this program is not finite at step"):
        trained(run, tmp_path / "run", tmp_path / "s")


def test_references_that_take_passes_are_refused(toy, tmp_path, monkeypatch):
    """Training has the clip's own prediction and its clean latents, and no others."""
    run = make(energy={"x0-motion": {"reference": "inversion"}})
    words = r"energy 'x0-motion' of .*'inversion' .* which training does not have.*prediction.* or clean.*try energy"
    with pytest.raises(GuidedCDError, match=words):
        preprocess(run, store_folder=tmp_path / "s")
    monkeypatch.setattr(type(run.teacher), "build", lambda *_: pytest.fail("the teacher was built"))
    with pytest.raises(GuidedCDError, match=words):
        guidedcd.distil(run, out=tmp_path / "run")
    assert not (tmp_path / "s").exists() and not (tmp_path / "run").exists()


def _with(energy) -> Run:
    """The toy run with an energy of this program alone."""
    chosen = Run.from_profile(teacher="toy", data="toy", energies={"root": energy}, rewards=[])
    run = make(rewards={}, replace=["rewards"])
    return attrs.evolve(run, energies=chosen.energies)
