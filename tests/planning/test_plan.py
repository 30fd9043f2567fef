"""The plan of a run: devices, warnings, cheaper settings, the probe, and the command."""

from __future__ import annotations

import json

import attrs
import pytest
import torch
from planned_runs import gpu, shipped_run
from toy_plugin import make

from guidedcd.config.resolve import run_from_dict
from guidedcd.config.sections import EvaluateConfig
from guidedcd.config.structure import changed
from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError, on_command_line
from guidedcd.planning import calibration
from guidedcd.planning.alternatives import choices
from guidedcd.planning.estimate import Estimator
from guidedcd.planning.gpus import DATA_SHEETS, GIB, SHARES, WITHIN, WITHIN_UNMEASURED, machine
from guidedcd.planning.plan import Question, plan, print_plan, several
from guidedcd.planning.preprocess_cost import ROWS


def test_devices_are_chosen_by_words_of_their_name():
    """Words of a GPU's name suffice, flags precede the data sheet, and the error of an unknown name lists all."""
    cpu = torch.device("cpu")
    assert machine(cpu, like="h200").half == DATA_SHEETS["h200"][0] * 1e12
    assert machine(cpu, like="NVIDIA A100-SXM4-40GB").memory == 40 * GIB
    assert machine(cpu, like="h100", tflops=500, memory=10).half == 5e14
    assert machine(cpu).memory > GIB and machine(cpu).single > 1e8
    for name in ("abacus", "h1000", "NVIDIA L40"):
        with pytest.raises(GuidedCDError, match=f"'{name}', which names no known GPU. Known: .*h200"):
            machine(cpu, like=name)


def test_a_number_before_the_gpu_is_that_of_devices():
    """8xh100 plans for eight H100, and a name with an x of its own stays whole."""
    assert several("8xh100") == ("h100", 8)
    assert several("rtx-4090") == ("rtx-4090", None)
    assert several("0xh100") == ("0xh100", None)
    assert several(None) == (None, None)
    assert machine(torch.device("cpu"), like="rtx-4090").memory == 24 * GIB


@pytest.mark.slow
def test_largest_batch_fits_and_the_next_does_not(toy):
    """A run with the predicted largest batch fits; with a tenth more it does not."""
    device = gpu(memory=0.7 * GIB)
    run = make()
    run = attrs.evolve(run, rewards={})
    for stage in ("preprocess", "train"):

        def planned(batch: int, stage: str = stage):
            section = attrs.evolve(getattr(run, stage), batch_size=batch)
            return getattr(Estimator(device), stage)(attrs.evolve(run, **{stage: section}))

        batch = planned(2).largest_batch
        room = (device.memory * 0.94 - 0.6 * GIB) / GIB
        assert batch > 2
        assert planned(batch).peak_gib <= room * 1.01 < planned(int(batch * 1.1) + 1).peak_gib * 1.02


@pytest.mark.slow
def test_a_plan_in_python_names_the_options_of_python(toy):
    """The table that `guidedcd.plan` returns has no flags; the command's table has them."""
    run = make(preprocess={"draws_per_video": 2, "videos": 64}, solver={"steps": 50}, train={"batch_size": 3})
    text = str(plan(run, on="4090", memory=0.6))

    assert "--" not in text.replace("---", "")
    assert '`energies.toy.reference="single-step"`' in text
    assert "`train.batch_size=" in text or "no batch size fits" in text
    with on_command_line():
        assert "--energies.toy.reference single-step" in str(plan(run, on="4090"))


@pytest.mark.slow
def test_cheaper_settings_are_cheaper(toy):
    """Every suggestion is a flag of a run, and has the predicted savings."""
    run = make(preprocess={"draws_per_video": 2, "videos": 64}, solver={"steps": 50}, train={"batch_size": 3})
    run = attrs.evolve(run, rewards={n: attrs.evolve(c, frames=2) for n, c in run.rewards.items()})
    figures = print_plan(run, Question(on="4090", as_json=True))
    flags = {change["flags"]: change for change in figures["cheaper"]}

    assert {choice.stage for choice in choices(run, "cuda")} == {"preprocess", "train"}
    before, after = flags["--energies.toy.reference single-step"]["device_hours"]
    assert after < before / 3
    before, after = flags["--preprocess.dtype bfloat16"]["disk_gb"]
    assert after < 0.75 * before
    before, after = flags["--train.optimizer.name adamw-8bit"]["peak_gib"]
    assert after < before


def test_recomputed_rewards_are_suggested_where_they_keep_their_activations():
    """The suggestion names the switch of each reward that has one and does not use it, and sets it."""
    rewards = {"hps": {"path": "shapes"}, "internv2": {"path": "shapes", "gradient_checkpointing": True}}
    suggested = [choice for choice in choices(shipped_run(rewards=rewards), "cuda") if "checkpointing" in choice.flags]

    assert [choice.flags for choice in suggested] == ["--rewards.hps.gradient-checkpointing"]
    assert [config.gradient_checkpointing for config in suggested[0].run.rewards.values()] == [True, True]


def test_a_run_that_does_not_fit_is_a_warning(toy, capsys):
    """A device with too little memory is a warning with the batch that fits, and no failure."""
    run = make(train={"batch_size": 4})
    figures = print_plan(run, Question(on="t4", memory=0.6, cheaper=False))

    assert any("per process" in warning for warning in figures["warnings"])
    assert "warning" in capsys.readouterr().out


def test_plan_prints_json_and_writes_nothing(toy, tmp_path, capsys, monkeypatch):
    """--json is one object on standard output; the working folder stays empty."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    print_plan(make(), Question(as_json=True, cheaper=False))
    figures = json.loads(capsys.readouterr().out)

    assert figures["train"]["peak_gib"] > 0 and figures["preprocess"]["disk_gb"] > 0
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("energy", ["toy", "pta"])
def test_energies_are_counted(toy, energy):
    """The gradient of an energy is counted on the meta device, so that the plan leaves nothing out."""
    estimator = Estimator(gpu())
    guided = estimator.preprocess(make(replace=("energy",), energy={energy: {}}))
    plain = estimator.preprocess(make(replace=("energy",), energy={}))

    assert estimator.left_out == {}
    assert guided.hours > plain.hours


def test_a_reward_that_cannot_be_built_is_left_out(toy, capsys):
    """A reward without its file and without an outline is named in a warning; the rest is planned."""
    run = make()
    broken = attrs.evolve(run, rewards={"toy": run.rewards["toy"]})
    estimator = Estimator(gpu())
    estimator.left_out["reward hps"] = "no file"
    from guidedcd.planning.plan import warnings

    sentences = warnings(broken, {"train": estimator.train(broken)}, gpu(), None, estimator.left_out)
    assert any("leaves out reward hps: no file" in line for line in sentences)


@pytest.mark.slow
def test_probe_measures_beside_the_prediction(toy, tmp_path, monkeypatch):
    """A probe measures a pass, a batch of preprocessing and training steps, and leaves no file."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    probed = print_plan(make(), Question(probe=True, cheaper=False, as_json=True))["probe"]
    rows = {row["what"].split(",")[0]: row for row in probed["rows"]}

    assert {"one pass", "preprocess", "store", "2 training steps"} <= set(rows)
    assert all(row["measured"] > 0 for row in probed["rows"])
    assert rows["store"]["measured"] == pytest.approx(rows["store"]["predicted"], rel=0.1)
    assert list((tmp_path / "work").iterdir()) == []


def test_the_command_takes_the_flags_of_train(toy, capsys):
    """`guidedcd plan` takes the flags of a run and its own, and ends with status 0."""
    from guidedcd.cli import main

    run = ["--teacher", "toy", "--data", "toy", "--routes", "none", "--train.batch-size", "2"]
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "plan",
                *run,
                "--train.activation-checkpoint.layers",
                "all",
                "--on",
                "h200",
                "--json",
                "--processes",
                "2",
                "--no-cheaper",
            ]
        )

    assert ended.value.code in (0, None)
    figures = json.loads(capsys.readouterr().out)
    assert figures["machine"]["processes"] == 2 and "cheaper" not in figures


@pytest.mark.slow
def test_a_probe_leaves_out_what_takes_too_long(toy):
    """A measurement that is predicted to end after the limit is left out, and its row states the prediction."""
    from guidedcd.planning.probe import probe

    probed = probe(make(), Estimator(gpu(half=1e3, single=1e3)), limit=0.5)
    assert all(row["measured"] is None and row["why"] for row in probed["rows"])


def test_shapes_run_json_is_planned(tmp_path):
    """A run of the proving ground is planned from its own file, as with `--config run.json`."""
    run = shipped_run(energy={"pta": {}})
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run.to_dict()))
    stage = Estimator(gpu()).preprocess(run_from_dict(read_json(path)))

    assert stage.tflop > 0 and stage.largest_batch > 0


def test_a_plan_needs_no_dataset(toy, capsys):
    """Without a dataset a plan has its figures, a range of times, and states which videos it assumes."""
    plan = print_plan(attrs.evolve(make(), data=()), Question(on="h200", cheaper=False))
    for stage in ("preprocess", "train", "evaluate"):
        low, high = plan[stage]["hours_range"]
        assert 0 < low < plan[stage]["hours"] < high

    assert "5 videos of 3 frames, 8 x 8 pixels" in plan["assumed"]
    assert plan["preprocess"]["disk_gb"] > 0 and plan["train"]["tflop"] > 0
    printed = capsys.readouterr().out
    assert "no dataset is selected" in printed and "together" in printed


def test_a_plan_counts_the_network_calls_of_an_evaluation():
    """Two prompts and seeds: student and teachers with 4 and 2 steps, two strengths on 3 prompts, one slow video."""
    config = EvaluateConfig(seeds=2, steps=4, omega=2.0, teacher_omega=(1.0, 0.0), teacher_steps=50)
    calls = 4 * (4 + 8 + 4) + 3 * 2 * (8 + 4 + 4 + 2) + 1 * 100

    assert config.work(2, shown=1, choosing=3, solvers=2) == (calls, 4 * 3 + 3 * 2 * 2 * 2 + 1)


@pytest.mark.parametrize("options", [{"scale": {"pta": 0.3}}, {"prompts": ["a ball", "a cat"]}], ids=str)
def test_an_evaluation_with_lists_and_dicts_is_planned(toy, options):
    """Options of an evaluation without a hash are counted, and counted once."""
    run, estimator = make(), Estimator(gpu())
    run = attrs.evolve(run, evaluate=changed(run.evaluate, **options))

    assert estimator.evaluate(run).hours > 0
    assert estimator.evaluate(run) == estimator.evaluate(run)


def test_a_stated_speed_is_not_measured(toy, monkeypatch):
    """With --device-tflops a machine has the range of a known one, and no pass of the teacher replaces the figure."""
    monkeypatch.setattr(calibration, "_passes", lambda run, rows: pytest.fail("a pass was measured"))
    stated = machine(torch.device("cpu"), tflops=2)
    estimator = Estimator(stated)
    estimator.calibrate(make())

    assert stated.within == WITHIN and stated.half == 2e12
    assert estimator.machine == stated


def test_a_measured_share_is_kept_by_faster_paths():
    """Layers raise the share of a GPU, measured or not, by the same factor."""
    measured = gpu(share=0.2)

    assert measured.with_layers("no").share == pytest.approx(0.2)
    assert measured.with_layers("layers").share == pytest.approx(0.2 * SHARES["layers"] / SHARES["no"])


def test_a_teacher_that_does_not_fit_is_not_measured(toy, monkeypatch):
    """Any error of the measured pass leaves the speed of the matrix product."""

    def fail(run, rows):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(calibration, "_passes", fail)
    estimator = Estimator(machine(torch.device("cpu")))
    before = estimator.machine
    estimator.calibrate(make())

    assert estimator.machine == before and before.within == WITHIN_UNMEASURED


def test_a_pass_is_measured_in_the_precision_of_the_run(toy, monkeypatch):
    """With bf16 preprocessing the network of the measured pass has bfloat16 weights, like that of the count."""
    from guidedcd.models.teachers import latent

    dtypes, net = set(), latent.LatentTeacher.net

    def recorded(teacher, *args, **options):
        dtypes.add(next(teacher.network.parameters()).dtype)
        return net(teacher, *args, **options)

    monkeypatch.setattr(latent.LatentTeacher, "net", recorded)
    calibration._passes(make(preprocess={"precision": "bf16"}), 1)

    assert dtypes == {torch.bfloat16}


def test_threads_beyond_the_granted_cpus_are_no_other_work(monkeypatch):
    """Idle threads, and a quota of CPU time, make no pass look delayed; a load average of other programs does."""
    monkeypatch.setattr(calibration.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(calibration.torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(calibration.os, "getloadavg", lambda: (0.0, 0.0, 0.0), raising=False)
    assert calibration._undisturbed(1.0, 2.0) == 1.0
    assert calibration._undisturbed(1.0, 0.2) == 1.0

    monkeypatch.setattr(calibration.os, "getloadavg", lambda: (4.0, 0.0, 0.0), raising=False)
    assert calibration._undisturbed(1.0, 0.2) == pytest.approx(1 / 3)
    assert calibration._undisturbed(1.0, 1.0) == pytest.approx(0.5)


def test_a_busy_machine_is_measured(toy, monkeypatch):
    """A machine without a data sheet gets the speed of a pass; other work makes the longest time longer."""
    slow = calibration._passes
    monkeypatch.setattr(calibration, "_passes", lambda run, rows: (1e-3, 3e-3))
    estimator = Estimator(machine(torch.device("cpu")))
    run = make()
    estimator.calibrate(run)
    counted, rows = estimator.teaching(run).forward, ROWS * run.preprocess.batch_size

    assert estimator.machine.seconds(counted) == pytest.approx(3e-3 * rows, rel=0.01)
    assert estimator.machine.range_of(3.0) == (1.0 / 1.25, 3.0 * 1.25)
    fastest, mean = slow(run, 1)
    assert 0 < fastest <= mean * 1.01
