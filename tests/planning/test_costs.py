"""Predicted operations, passes and bytes, compared with published figures and with real stores and trainers."""

from __future__ import annotations

import attrs
import pytest
import torch
from planned_runs import gpu, shipped_run
from safetensors.torch import load_file
from toy_plugin import make

import guidedcd
from guidedcd.config.structure import changed
from guidedcd.planning.estimate import Estimator, run_bytes
from guidedcd.planning.gpus import Machine
from guidedcd.planning.meter import metered
from guidedcd.planning.preprocess_cost import empty
from guidedcd.planning.skeletons import outline
from guidedcd.planning.training_cost import Training, resident
from guidedcd.preprocessing.estimates import passes, reference_kinds, store_bytes
from guidedcd.preprocessing.preprocess import preprocess
from guidedcd.preprocessing.store import LatentStore
from guidedcd.training import checkpoint
from guidedcd.training.distributed import WHOLE
from guidedcd.training.trainer import Trainer


def test_videocrafter2_has_its_published_cost():
    """The published architecture is counted without a file: 1.41 B weights, 12.58 TFLOP for 16 frames of 320x512."""
    run = shipped_run(teacher={"videocrafter2": {"path": "nowhere.ckpt"}})
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
    run = shipped_run(teacher={"videocrafter2": {}}, energy={"pta": {}}, train={"batch_size": 3, "precision": "bf16"})
    tflop = {}
    for checkpointing in (False, True):
        train = changed(run.train, activation_checkpoint={"layers": "all" if checkpointing else "none"})
        tflop[checkpointing] = Estimator(gpu()).training(attrs.evolve(run, train=train)).step.flops / 1e12

    assert tflop[False] == pytest.approx(151, rel=0.03)
    assert tflop[True] == pytest.approx(188, rel=0.03)


@pytest.mark.slow
def test_rollouts_are_counted(toy):
    """A rollout of one step costs 3/4 of a clip, one of four steps 5/4; without rewards rollouts cost nothing."""

    def flops(rollouts: int, steps: int = 1, **changes) -> float:
        run = make(train={"rollouts": {"videos": rollouts, "steps": steps}, "batch_size": 2}, **changes)
        return Estimator(gpu()).training(run).step.flops

    clips = flops(0)
    assert flops(2) == pytest.approx(clips * 7 / 4, rel=0.02)
    assert flops(2, 4) == pytest.approx(clips * 9 / 4, rel=0.02)
    assert flops(2, 4, rewards={}, replace=("rewards",)) == clips


@pytest.mark.parametrize("name", ["unet3d", "animatediff"])
def test_other_teachers_are_planned_without_their_folders(name):
    """A teacher whose folder is missing is counted with the published architecture of its family."""
    config = shipped_run(teacher={name: {"path": "no/such-model", "height": 64, "width": 64}}).teacher
    teacher = outline(config)
    text = teacher.embed(["a"])
    with metered() as cost, torch.no_grad():
        z = empty(1, *teacher.geometry.latent_shape)
        teacher.net(z, torch.zeros(1, dtype=torch.long, device="meta"), text)

    assert sum(p.numel() for p in teacher.network.parameters()) == pytest.approx(1.4e9, rel=0.15)
    assert cost.flops > 1e11 and all(p.is_meta for p in teacher.parameters())


@pytest.mark.parametrize("name", ["hps", "clip", "internv2", "pickscore"])
def test_rewards_are_planned_without_their_files(name):
    """A published reward whose file is missing has its shapes, and no weights."""
    reward = outline(shipped_run(rewards={name: {"path": "nowhere.pt"}}).chosen("reward")[0])

    assert sum(p.numel() for p in reward.parameters()) > 5e8
    assert all(p.is_meta for p in reward.parameters())
    assert reward.count_tokens("a cat") > 0


@pytest.mark.slow
def test_a_cuda_graph_adds_the_memory_of_its_pass(toy):
    """`--train.fast graphs` adds the peak of a pass without gradient, and nothing else."""
    estimator = Estimator(gpu())
    plain, replayed = (estimator.training(make(train={"fast": fast})) for fast in ("layers", "graphs"))

    assert plain.replayed == 0 < replayed.replayed < plain.step.peak
    assert replayed.peak - plain.peak == replayed.replayed


@pytest.mark.slow
def test_replayed_rewards_reserve_the_activations_of_their_towers():
    """A reward in a CUDA graph reserves its tower's peak; the work is the same, and a CPU has no graphs."""

    def training(machine: Machine, replay: bool) -> Training:
        rewards = {name: {"weight": 1.0, "path": "shapes"} for name in ("hps", "internv2")}
        return Estimator(machine).training(shipped_run(rewards=rewards, train={"replay_rewards": replay}))

    plain, replayed = (training(gpu(), replay) for replay in (False, True))
    towers = 0
    for chosen in shipped_run(rewards={"hps": {"path": "shapes"}, "internv2": {"path": "shapes"}}).chosen("reward"):
        reward, count = outline(chosen), plain.run.rewards[chosen.name].count(16, 8)
        size = reward.image_size
        shape = (4 * count, 3, size, size) if chosen.name == "hps" else (4, count, 3, size, size)
        x = empty(*shape).requires_grad_()
        with metered() as cost:
            torch.autograd.grad(reward.pixel_features(x).sum(), x)
        towers += cost.peak

    assert replayed.others - plain.others == pytest.approx(towers, rel=0.05)
    assert replayed.rewards.peak < plain.rewards.peak < replayed.rewards.peak + 1.1 * towers
    assert replayed.flops == plain.flops
    assert training(gpu(kind="cpu"), True).peak == training(gpu(kind="cpu"), False).peak


@pytest.mark.slow
def test_passes_are_those_of_a_real_store(toy, tmp_path, monkeypatch):
    """The number of samples of the teacher's passes is the predicted one, on average over the noise seeds."""
    from guidedcd.models.teachers import latent

    run = make(preprocess={"videos": 24, "shard_size": 12, "batch_size": 4}, solver={"steps": 9})
    rows, net = [], latent.LatentTeacher.net
    monkeypatch.setattr(latent.LatentTeacher, "net", lambda s, z, *a, **k: (rows.append(len(z)), net(s, z, *a, **k))[1])
    preprocess(run, store_folder=tmp_path / "store")
    counted = passes(run)

    assert counted.scored + counted.plain == pytest.approx(3)
    expected = counted.inversion + 3 * counted.scored + 2 * counted.plain
    assert sum(rows) / 24 == pytest.approx(expected, rel=0.05)


def test_an_energy_without_a_reference_needs_no_inversion(toy, monkeypatch):
    """A `reference_free` energy has no reference, so that neither passes nor bytes of an inversion are counted."""
    import toy_plugin

    run = make()
    before, bytes_before, cost = passes(run), store_bytes(run, 96, 24), Estimator(gpu()).teaching(run).guided
    monkeypatch.setattr(toy_plugin.Energy, "reference_free", True, raising=False)
    monkeypatch.setattr(toy_plugin.Energy, "__call__", lambda energy, seen, none: seen.x0.flatten(1).mean(1))
    costs = Estimator(gpu()).teaching(run)

    assert reference_kinds(run) == {} and passes(run) == attrs.evolve(before, inversion=0.0) != before
    assert store_bytes(run, 96, 24) < bytes_before
    assert costs.guided.flops < cost.flops and not costs.left_out


def still(seen, reference):
    """An energy (B,) of the calling program, which compares with nothing."""
    return seen.x0.flatten(1).mean(1)


still.reference_free = True


def test_an_object_without_a_reference_needs_no_inversion(toy):
    """The attribute of an object of the calling program counts as that of an installed class."""
    run = guidedcd.Run.from_profile(teacher="toy", data="toy", energies={"still": still})

    assert reference_kinds(run) == {} and passes(run).inversion == 0


@pytest.mark.slow
def test_store_has_the_predicted_bytes(toy, tmp_path):
    """A written store is within two per cent of the prediction, for every dtype of a store."""
    for dtype in ("float32", "float16"):
        run = make(preprocess={"videos": 8, "shard_size": 4, "draws_per_video": 6, "dtype": dtype})
        folder = tmp_path / dtype
        preprocess(run, store_folder=folder)
        written = sum(path.stat().st_size for path in folder.rglob("shard-*"))
        latent = LatentStore(folder)[0].z0.numel()

        assert store_bytes(run, latent, 4 * 6, caption=8) == pytest.approx(written, rel=0.02)


@pytest.mark.slow
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
    saved = checkpoint.paths(tmp_path / "checkpoints")[-1]
    files = [*saved.glob("*.safetensors"), *(tmp_path / "student").glob("*.safetensors")]
    written = sum(tensor.numel() * tensor.itemsize for file in files for tensor in load_file(file).values())
    stored = torch.load(saved / "state.pt", weights_only=True)["optimizer"]["state"].values()
    written += sum(t.numel() * t.itemsize for values in stored for t in values.values() if t.dim())
    assert run_bytes(once, counted) == pytest.approx(written, rel=0.01)


@pytest.mark.slow
def test_processes_share_the_work(toy):
    """Several processes share a store's device-hours; with FSDP they also share the states."""
    one, four = Estimator(gpu()).preprocess(make()), Estimator(gpu(), 4).preprocess(make())
    assert four.device_hours == pytest.approx(one.device_hours) and four.hours == pytest.approx(one.hours / 4)
    for precision, width in (("no", 4), ("bf16", 2)):
        run = make(train={"parallel": {"mode": "fsdp"}, "precision": precision})
        plain = resident(make(train={"parallel": {"mode": "fsdp"}, "precision": "no"}), 100, 100)
        share = WHOLE + (1 - WHOLE) / 4
        assert resident(run, 100, 100, processes=4).between == plain.between * share + 100 * width
