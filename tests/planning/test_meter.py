"""Plans: what is counted against what is really allocated, written and called, at the size of a toy."""

from __future__ import annotations

import json

import attrs
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from toy_plugin import make

from guidedcd.config.resolve import run_from_dict
from guidedcd.config.run import Run
from guidedcd.config.structure import changed
from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError
from guidedcd.planning.alternatives import choices
from guidedcd.planning.estimate import Estimator, run_bytes
from guidedcd.planning.gpus import GB, KNOWN, Machine, machine
from guidedcd.planning.meter import Cost, Kernel, metered, without_memory
from guidedcd.planning.plan import Question, print_plan
from guidedcd.planning.preprocess_cost import empty
from guidedcd.planning.skeletons import outline
from guidedcd.planning.training_cost import resident
from guidedcd.preprocessing.estimates import passes, store_bytes
from guidedcd.preprocessing.preprocess import preprocess
from guidedcd.preprocessing.store import LatentStore
from guidedcd.testing.tiny_teacher import tiny_teacher
from guidedcd.training import checkpoint
from guidedcd.training.distributed import WHOLE
from guidedcd.training.trainer import Trainer


def described(**parts) -> Run:
    """A run of shipped components, with the proving ground's where none is given."""
    return run_from_dict({"teacher": {"shapes": {}}, "data": [{"shapes": {}}], **parts})


def gpu(**changes) -> Machine:
    """A device with round figures."""
    figures = {"half": 1e12, "single": 1e11, "bandwidth": 1e9, "memory": 24.0 * GB, "share": 0.5, "launch": 1e-6}
    return Machine(**{"name": "made up", "kind": "cuda", **figures, **changes})


def test_operations_are_those_of_torchs_counter():
    """A network counted without memory has the operations that torch's counter finds on real tensors."""
    teacher = tiny_teacher()
    z, t, cond = torch.randn(2, *teacher.geometry.latent_shape), torch.tensor([10, 900]), teacher.embed(["a b", "c"])
    # Torch's counter has no formula for the CPU's fused attention kernel, but counts every matmul.
    with FlopCounterMode(display=False) as real, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        teacher.net(z, t, cond)
    nn.Module.to(teacher, "meta")
    text = {key: value.to("meta") for key, value in cond.items()}
    with metered() as cost, torch.no_grad():
        teacher.net(z.to("meta"), t.to("meta"), text)

    assert cost.flops == real.get_total_flops()


def test_memory_is_what_is_alive():
    """The peak holds a result with its operands' copies; what was there before and what was freed does not count."""
    a = empty(1000)
    with metered() as cost:
        b = a + 1
        b = b * 2
        del b

    assert (cost.peak, cost.kept) == (8000, 0)
    assert [kernel.moved for kernel in cost.kernels] == [8000, 8000]


def test_views_cost_nothing_and_writes_in_place_take_no_memory():
    """A transposed view is no kernel; an addition in place moves bytes but holds none."""
    a = empty(10, 10)
    with metered() as cost:
        a.t().view(100) if a.t().is_contiguous() else a.t()
        a.add_(1)

    assert (len(cost.kernels), cost.peak) == (1, 0)


def test_saved_activations_are_kept_until_the_gradient():
    """After a forward pass the saved activations are alive; after the backward pass only the gradients are."""
    layers = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64)).to("meta")
    with metered() as cost:
        loss = layers(empty(512, 64)).sum()
        held = cost.kept
        torch.autograd.backward(loss)
        del loss
    weights = sum(p.numel() * 4 for p in layers.parameters())

    assert held >= 512 * 256 * 4
    assert weights <= cost.kept < weights + 1000


def test_a_remembered_kernel_counts_like_a_new_one():
    """The same computation counted twice has the same cost, and so has one of another dtype or size its own."""

    def cost(size: int, dtype: torch.dtype) -> tuple[int, int, int]:
        with metered() as found:
            torch.nn.functional.silu(empty(size).to(dtype)) + 1
        return found.flops, found.peak, sum(kernel.moved for kernel in found.kernels)

    first = cost(100, torch.bfloat16)
    assert cost(100, torch.bfloat16) == first
    assert cost(100, torch.float32) != first and cost(200, torch.bfloat16)[2] == 2 * first[2]


def test_attention_keeps_no_matrix():
    """Attention without a mask is counted as a fused kernel: with the same operations, and without the N x N matrix."""
    q = empty(1, 4, 512, 16).requires_grad_()
    with metered() as cost:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)

    assert cost.flops == 2 * 2 * 4 * 512 * 512 * 16
    assert cost.kept < 4 * 512 * 512


def test_videocrafter2_has_its_published_cost():
    """The published architecture is counted without a file: 1.41 B weights, 12.58 TFLOP for 16 frames of 320x512."""
    run = described(teacher={"videocrafter2": {"path": "nowhere.ckpt"}})
    teacher = outline(run.teacher)
    cond = {"prompt_embeds": empty(1, 77, 1024)}
    with metered() as cost, torch.no_grad():
        teacher.net(empty(1, *teacher.geometry.latent_shape), torch.zeros(1, dtype=torch.long, device="meta"), cond)

    assert sum(p.numel() for p in teacher.network.parameters()) == pytest.approx(1.412e9, rel=1e-3)
    assert cost.flops == pytest.approx(12.58e12, rel=0.03)
    assert all(p.is_meta for p in teacher.parameters())


@pytest.mark.slow
def test_a_training_step_of_videocrafter2_has_its_measured_cost():
    """A consistency step at batch 3 takes 151 TFLOP, 188 with checkpointing, counted from the released code."""
    run = described(teacher={"videocrafter2": {}}, energy={"pta": {}}, train={"batch_size": 3, "precision": "bf16"})
    found = {}
    for checkpointing in (False, True):
        train = changed(run.train, activation_checkpoint={"layers": "all" if checkpointing else "none"})
        found[checkpointing] = Estimator(gpu()).training(attrs.evolve(run, train=train)).step.flops / 1e12

    assert found[False] == pytest.approx(151, rel=0.03)
    assert found[True] == pytest.approx(188, rel=0.03)


def test_own_videos_are_counted(toy):
    """An own video of one step costs three of a clip's four passes, of four steps two more; without rewards nothing."""

    def flops(rollouts: int, steps: int = 1, **changes) -> float:
        run = make(train={"rollouts": {"videos": rollouts, "steps": steps}, "batch_size": 2}, **changes)
        return Estimator(gpu()).training(run).step.flops

    clips = flops(0)
    assert flops(2) == pytest.approx(clips * 7 / 4, rel=0.02)
    assert flops(2, 4) == pytest.approx(clips * 9 / 4, rel=0.02)
    assert flops(2, 4, rewards={}, replace=("rewards",)) == clips


@pytest.mark.parametrize("name", ["unet3d", "animatediff"])
def test_other_teachers_are_planned_without_their_folders(name):
    """A teacher whose folder is not there is counted with its family's published architecture."""
    config = described(teacher={name: {"path": "no/such-model", "height": 64, "width": 64}}).teacher
    teacher = outline(config)
    text = teacher.embed(["a"])
    with metered() as cost, torch.no_grad():
        z = empty(1, *teacher.geometry.latent_shape)
        teacher.net(z, torch.zeros(1, dtype=torch.long, device="meta"), text)

    assert sum(p.numel() for p in teacher.network.parameters()) == pytest.approx(1.4e9, rel=0.15)
    assert cost.flops > 1e11 and all(p.is_meta for p in teacher.parameters())


@pytest.mark.parametrize("name", ["hps", "clip", "internv2", "pickscore"])
def test_rewards_are_planned_without_their_files(name):
    """A published reward whose file is not there has its shapes, and no weights."""
    reward = outline(described(rewards={name: {"path": "nowhere.pt"}}).chosen("reward")[0])

    assert sum(p.numel() for p in reward.parameters()) > 5e8
    assert all(p.is_meta for p in reward.parameters())
    assert reward.count_tokens("a cat") > 0


def test_a_graph_of_the_targets_pass_counts_beside_everything_else(toy):
    """`--train.fast graphs` is planned with what a pass without gradient holds at most, and nothing else more."""
    parts = {"layers": make(train={"fast": "layers"}), "graphs": make(train={"fast": "graphs"})}
    estimator = Estimator(gpu())
    plain, replayed = (estimator.training(run) for run in parts.values())

    assert plain.replayed == 0 < replayed.replayed < plain.step.peak
    assert replayed.peak - plain.peak == replayed.replayed


def test_passes_are_those_of_a_real_store(toy, tmp_path, monkeypatch):
    """Samples that the teacher is really asked for are those that are predicted, on average over the noise seeds."""
    from guidedcd.models.teachers import latent

    run = make(preprocess={"videos": 24, "shard_size": 12, "batch_size": 4}, solver={"steps": 9})
    rows, net = [], latent.LatentTeacher.net
    monkeypatch.setattr(latent.LatentTeacher, "net", lambda s, z, *a, **k: (rows.append(len(z)), net(s, z, *a, **k))[1])
    preprocess(run, store_folder=tmp_path / "store")
    counted = passes(run)

    assert counted.scored + counted.plain == pytest.approx(3)
    expected = counted.inversion + 3 * counted.scored + 2 * counted.plain
    assert sum(rows) / 24 == pytest.approx(expected, rel=0.05)


def test_store_has_the_predicted_bytes(toy, tmp_path):
    """A written store is within two per cent of the prediction, for every dtype it may be kept in."""
    for dtype in ("float32", "float16"):
        run = make(preprocess={"videos": 8, "shard_size": 4, "draws_per_video": 6, "dtype": dtype})
        folder = tmp_path / dtype
        preprocess(run, store_folder=folder)
        written = sum(path.stat().st_size for path in folder.glob("shard-*"))
        latent = LatentStore(folder)[0].z0.numel()

        assert store_bytes(run, latent, 4 * 6, caption=8) == pytest.approx(written, rel=0.02)


@pytest.mark.parametrize(
    ("precision", "student"),
    [
        ("no", {}),
        ("bf16", {}),
        pytest.param("bf16", {"kind": "lora", "rank": 4}, marks=pytest.mark.slow),
        pytest.param("bf16", {"ema": 0.9}, marks=pytest.mark.slow),
    ],
    ids=["float32", "bf16", "lora", "ema"],
)
def test_state_has_the_predicted_bytes(toy, tmp_path, student, precision):
    """A trainer's weights, masters, averages and AdamW states have the predicted bytes, and so has its checkpoint."""
    run = make(student=student, train={"precision": precision, "steps": 5, "checkpoint": {"every": 2}})
    run = attrs.evolve(run, rewards={})
    store = preprocess(run, store_folder=tmp_path / "store")
    trainer = Trainer(run, tmp_path, LatentStore(store), run.teacher.build())
    trainer.fit()
    step = trainer.step
    network = list(step.student.network.parameters())
    held = {id(t): t for t in (*network, *step.weights.masters)}
    for averaged in (
        step.weights.average or [],
        step.student.averaged.parameters() if step.student.averaged else [],
    ):
        held |= {id(t): t for t in averaged}
    state = [t for values in step.optimizer.state.values() for t in values.values() if t.dim()]
    whole, trained = sum(p.numel() for p in network), sum(m.numel() for m in step.weights.masters)
    predicted = resident(run, whole, trained)

    assert sum(t.numel() * t.itemsize for t in (*held.values(), *state)) == pytest.approx(predicted.between, rel=0.01)
    counted = Estimator(gpu()).training(run)
    assert (counted.whole, counted.trained) == (whole, trained)
    once = attrs.evolve(run, train=attrs.evolve(run.train, steps=3))
    saved = checkpoint.found(tmp_path / "checkpoints")[-1]
    files = [*saved.glob("*.safetensors"), *(tmp_path / "student").glob("*.safetensors")]
    written = sum(tensor.numel() * tensor.itemsize for file in files for tensor in load_file(file).values())
    stored = torch.load(saved / "state.pt", weights_only=True)["optimizer"]["state"].values()
    written += sum(t.numel() * t.itemsize for values in stored for t in values.values() if t.dim())
    assert run_bytes(once, counted) == pytest.approx(written, rel=0.01)


def test_seconds_are_bound_by_the_slowest_of_three():
    """A kernel takes its operations' or its memory's time, whichever is longer; the host's launches may exceed both."""
    device = gpu()
    kernels = [Kernel(10**12, 0, True), Kernel(10**11, 0, False), Kernel(0, 10**9, True)]

    assert device.seconds(Cost(kernels)) == pytest.approx((1 + 1 + 1) / 0.5)
    assert attrs.evolve(device, launch=10.0).seconds(Cost(kernels)) == pytest.approx(30)


def test_devices_are_found_by_name():
    """A part of a GPU's name is enough, flags win over the table, and an unknown name is a mistake that lists it."""
    cpu = torch.device("cpu")
    assert machine(cpu, like="h200").half == KNOWN["h200"][0] * 1e12
    assert machine(cpu, like="NVIDIA A100-SXM4-40GB").memory == 40 * GB
    assert machine(cpu, like="h100", tflops=500, memory=10).half == 5e14
    assert machine(cpu).memory > GB and machine(cpu).single > 1e8
    with pytest.raises(GuidedCDError, match="no such GPU is known.*h200"):
        machine(cpu, like="abacus")


@pytest.mark.slow
def test_largest_batch_fits_and_the_next_does_not(toy):
    """Planned with the largest batch that is said to fit, a run fits; with a tenth more it does not."""
    device = gpu(memory=0.7 * GB)
    run = make()
    run = attrs.evolve(run, rewards={})
    for stage in ("preprocess", "train"):

        def planned(batch: int, stage: str = stage):
            section = attrs.evolve(getattr(run, stage), batch_size=batch)
            return getattr(Estimator(device), stage)(attrs.evolve(run, **{stage: section}))

        batch = planned(2).largest_batch
        room = (device.memory * 0.94 - 0.6 * GB) / GB
        assert batch > 2
        assert planned(batch).peak_gb <= room * 1.01 < planned(int(batch * 1.1) + 1).peak_gb * 1.02


@pytest.mark.slow
def test_cheaper_settings_are_cheaper(toy):
    """Every suggestion is a flag that a run takes, and saves what it says."""
    run = make(preprocess={"draws_per_video": 2, "videos": 64}, solver={"steps": 50}, train={"batch_size": 3})
    run = attrs.evolve(run, rewards={n: attrs.evolve(c, frames=2) for n, c in run.rewards.items()})
    found = print_plan(run, Question(on="4090", as_json=True))
    flags = {one["flags"]: one for one in found["cheaper"]}

    assert {choice.stage for choice in choices(run, "cuda")} == {"preprocess", "train"}
    before, after = flags["--energies.toy.reference single-step"]["device_hours"]
    assert after < before / 3
    before, after = flags["--preprocess.dtype bfloat16"]["disk_gb"]
    assert after < 0.75 * before
    before, after = (
        flags["--student.kind lora"]["peak_gb"] if "peak_gb" in flags.get("--student.kind lora", {}) else (1, 0)
    )
    assert after < before


def test_what_does_not_fit_is_said(toy, capsys):
    """A device with too little memory is a warning with the batch that fits, and no failure."""
    run = make(train={"batch_size": 4})
    found = print_plan(run, Question(on="t4", memory=0.6, cheaper=False))

    assert any("per process" in warning for warning in found["warnings"])
    assert "warning" in capsys.readouterr().out


def test_plan_prints_json_and_writes_nothing(toy, tmp_path, capsys, monkeypatch):
    """--json is one object on standard output; the working folder stays empty."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    print_plan(make(), Question(as_json=True, cheaper=False))
    found = json.loads(capsys.readouterr().out)

    assert found["train"]["peak_gb"] > 0 and found["preprocess"]["disk_gb"] > 0
    assert list((tmp_path / "work").iterdir()) == []


def test_a_reward_that_cannot_be_had_is_left_out(toy, capsys):
    """A reward without its file and without an outline is named in a warning; the rest is planned."""
    run = make()
    broken = attrs.evolve(run, rewards={"toy": run.rewards["toy"]})
    estimator = Estimator(gpu())
    estimator.left_out["reward hps"] = "no file"
    from guidedcd.planning.plan import warnings

    said = warnings(broken, {"train": estimator.train(broken)}, gpu(), None, estimator.left_out)
    assert any("leaves out reward hps: no file" in line for line in said)


def test_probe_measures_beside_the_prediction(toy, tmp_path, monkeypatch):
    """A probe has a pass, a batch of preprocessing and training steps, predicted and measured, and leaves no file."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    found = print_plan(make(), Question(probe=True, cheaper=False, as_json=True))["probe"]
    rows = {row["what"].split(",")[0]: row for row in found["rows"]}

    assert {"one pass", "preprocess", "store", "2 training steps"} <= set(rows)
    assert all(row["measured"] > 0 for row in found["rows"])
    assert rows["store"]["measured"] == pytest.approx(rows["store"]["predicted"], rel=0.3)
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
    found = json.loads(capsys.readouterr().out)
    assert found["machine"]["processes"] == 2 and "cheaper" not in found


def test_a_probe_begins_nothing_that_would_take_too_long(toy):
    """What is predicted to end after the limit is not begun, and the row says how long it would take."""
    from guidedcd.planning.probe import probe

    found = probe(make(), Estimator(gpu(half=1e3, single=1e3)), limit=0.5)
    assert all(row["measured"] is None and row["why"] for row in found["rows"])


def test_processes_share_the_work(toy):
    """Several processes share a store's device-hours; FSDP spreads most of what stays, and keeps the network."""
    one, four = Estimator(gpu()).preprocess(make()), Estimator(gpu(), 4).preprocess(make())
    assert four.device_hours == pytest.approx(one.device_hours) and four.hours == pytest.approx(one.hours / 4)
    for precision, width in (("no", 4), ("bf16", 2)):
        run = make(train={"parallel": {"mode": "fsdp"}, "precision": precision})
        plain = resident(make(train={"parallel": {"mode": "fsdp"}, "precision": "no"}), 100, 100)
        part = WHOLE + (1 - WHOLE) / 4
        assert resident(run, 100, 100, processes=4).between == plain.between * part + 100 * width


def test_meta_modules_keep_their_dtypes():
    """Giving memory back changes no dtype."""
    module = without_memory(nn.Linear(2, 2).half())
    assert module.weight.is_meta and module.weight.dtype == torch.float16


def test_shapes_run_json_is_planned(tmp_path):
    """The proving ground is planned from a run's own file, as `--config run.json` gives it."""
    run = described(energy={"pta": {}})
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run.to_dict()))
    stage = Estimator(gpu()).preprocess(run_from_dict(read_json(path)))

    assert stage.tflop > 0 and stage.largest_batch > 0


def test_a_plan_needs_no_dataset(toy, capsys):
    """Without a dataset a plan has its figures, and states which videos it assumes."""
    plan = print_plan(attrs.evolve(make(), data=()), Question(on="h200", cheaper=False))

    assert "5 videos of 3 frames, 8 x 8 pixels" in plan["assumed"]
    assert plan["preprocess"]["disk_gb"] > 0 and plan["train"]["tflop"] > 0
    assert "no dataset is selected" in capsys.readouterr().out
