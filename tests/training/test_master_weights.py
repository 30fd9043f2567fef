"""What a step keeps in memory and on disk: float32 masters, averages, 8-bit states, trackers, validation videos."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
import types

import pytest
import torch
from safetensors.torch import load_file
from short_training import TWO_PROCESSES, interrupted, launch, trained
from torch import nn
from toy_plugin import make

from guidedcd.config.sections import ActivationCheckpointConfig
from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError
from guidedcd.evaluation.report.page import write_report
from guidedcd.models.student import Student
from guidedcd.preprocessing.preprocess import preprocess
from guidedcd.preprocessing.store import LatentStore
from guidedcd.training import checkpoint
from guidedcd.training.master_weights import MasterWeights
from guidedcd.training.trainer import Trainer
from guidedcd.workflow import distil


def network() -> nn.Module:
    """Two layers, the second one frozen."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    made[1].requires_grad_(False)
    return made


def test_masters_keep_what_bfloat16_would_lose():
    """A step of 1e-4 moves a weight of 1 in float32 masters; the network's own bfloat16 weight alone would stay."""
    net = nn.Linear(1, 1, bias=False)
    nn.init.ones_(net.weight)
    weights = MasterWeights(net, dtype=torch.bfloat16)
    for _ in range(40):
        weights.masters[0].sub_(1e-4)
        weights.publish()

    assert net.weight.dtype == torch.bfloat16
    torch.testing.assert_close(weights.masters[0], torch.tensor([[0.996]]), atol=1e-6, rtol=0)
    assert net.weight.item() == 0.99609375
    assert (torch.ones(1, dtype=torch.bfloat16) - 1e-4).item() == 1


def test_gradients_of_several_batches_are_summed_in_float32():
    """256 + 1 is 256 in bfloat16: the second batch's gradient is not lost, and frozen weights have none."""
    net = network()
    weights = MasterWeights(net, dtype=torch.bfloat16)
    for value in (256.0, 1.0):
        for p in weights.working:
            p.grad = torch.full_like(p, value)
        weights.collect()

    assert weights.names == ("0.weight", "0.bias")
    assert all(torch.equal(m.grad, torch.full_like(m, 257.0)) for m in weights.masters)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_average_is_lent_to_the_network_and_given_back(dtype):
    """Inside `averaged` the network holds the average; afterwards both are as before, bit for bit."""
    net = network()
    weights = MasterWeights(net, dtype=dtype, decay=0.75)
    with torch.no_grad():
        weights.masters[0].add_(1)
    weights.publish()
    before, mean = net[0].weight.clone(), weights.average[0].clone()

    with weights.averaged():
        assert torch.equal(net[0].weight, mean.to(net[0].weight.dtype))
        assert not torch.equal(net[0].weight, before)
    assert torch.equal(net[0].weight, before)
    assert torch.equal(weights.average[0], mean)


def test_loading_gives_back_what_state_said():
    """Weights and average come back in float32, and the bfloat16 network and target follow."""
    first, second = (MasterWeights(network(), dtype=torch.bfloat16, decay=0.9, target=network()) for _ in range(2))
    with torch.no_grad():
        first.masters[0].add_(0.123)
    first.publish()
    second.load(first.state(), first.state(averaged=True))

    for ours, theirs in ((second.state(), first.state()), (second.state(averaged=True), first.state(averaged=True))):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert torch.equal(second.working[0], first.working[0])
    assert torch.equal(second._target[0], first.average[0].bfloat16())
    with pytest.raises(KeyError):
        second.load({})


def test_the_teacher_s_network_is_taken_over(toy):
    """A student that takes the network over holds no copy, keeps the teacher's fingerprint, and starts as it."""
    teacher, other = make().teacher.build(), make().teacher.build()
    student = Student(teacher, take=True)

    assert student.network is teacher.network
    assert teacher.fingerprint() == other.fingerprint()
    z, t = torch.randn(1, *teacher.geometry.latent_shape), torch.tensor([500])
    with torch.no_grad():
        said = student.eval()(z, t, teacher.embed(["x"]), torch.tensor([3.0]))
        torch.testing.assert_close(said, other.net(z, t, other.embed(["x"])), atol=1e-6, rtol=1e-5)


def test_bfloat16_learns_as_float32_does_and_resumes_exactly(toy, tmp_path, monkeypatch):
    """Losses agree to bfloat16's accuracy, weights are saved in float32, and a resumed run repeats every number."""
    options = {"steps": 2, "accumulate": 2, "average": 0.5, "checkpoint": {"every": 1}}
    options["activation_checkpoint"] = {"layers": "all"}
    runs = {name: make(train={**options, "precision": name}) for name in ("no", "bf16")}
    store = tmp_path / "s"
    lines = {name: trained(run, tmp_path / name, store) for name, run in runs.items()}
    for exact, rough in zip(lines["no"], lines["bf16"], strict=True):
        assert rough["cd_loss"] == pytest.approx(exact["cd_loss"], rel=0.05, abs=2e-3)
    saved = load_file(tmp_path / "bf16" / "student" / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float32}

    with interrupted(monkeypatch, 2):
        trained(runs["bf16"], tmp_path / "b", store)
    assert trained(runs["bf16"], tmp_path / "b", store) == lines["bf16"]
    for name in ("model", "online"):
        one, other = (load_file(tmp_path / x / "student" / f"{name}.safetensors") for x in ("bf16", "b"))
        assert all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("changes", [{"student": {"ema": 0.9}}, {"train": {"average": 0.9}}], ids=["ema", "average"])
def test_the_average_is_the_student_and_the_online_weights_lie_beside_it(toy, tmp_path, changes):
    """What is sampled is the average; one step of 0.9 leaves it a tenth of the way to the online weights."""
    train = {"steps": 1, **changes.get("train", {})}
    trained(make(**{**changes, "train": train}), tmp_path / "a", tmp_path / "s")
    teacher = make().teacher.build()
    start = Student(teacher, energies=("toy",)).network.state_dict()
    mean, online = (load_file(tmp_path / "a" / "student" / f"{n}.safetensors") for n in ("model", "online"))

    key = "conv_in.weight"
    assert not torch.equal(online[key], start[key])
    torch.testing.assert_close(mean[key], 0.9 * start[key] + 0.1 * online[key], atol=1e-6, rtol=0)
    loaded = Student.load(tmp_path / "a" / "student", teacher)
    assert torch.equal(loaded.network.state_dict()[key], mean[key])


def test_two_averages_are_refused(toy):
    """The averaged target is the average: a second one would be another student."""
    with pytest.raises(GuidedCDError, match="--student.ema averages the weights already"):
        make(student={"ema": 0.9}, train={"average": 0.5})


def test_eight_bit_states_need_their_package(toy, tmp_path, monkeypatch):
    """Without bitsandbytes one sentence says so before anything is computed; with it its AdamW8bit is used."""
    run = make(train={"optimizer": {"name": "adamw-8bit"}})
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(GuidedCDError, match="needs the package bitsandbytes .*pip install bitsandbytes, or use adamw"):
        distil(run)
    assert not (tmp_path / "runs").exists()

    class AdamW8bit(torch.optim.AdamW):
        """Stands in for the real one."""

    fake = types.SimpleNamespace(optim=types.SimpleNamespace(AdamW8bit=AdamW8bit))
    monkeypatch.setitem(sys.modules, "bitsandbytes", fake)
    store = LatentStore(preprocess(run, store_folder=tmp_path / "s"))
    trainer = Trainer(run, tmp_path, store, run.teacher.build())
    assert type(trainer.step.optimizer.optimizer) is AdamW8bit
    with pytest.raises(GuidedCDError, match="Use one or the other"):
        distil(make(train={"optimizer": {"name": "adamw-8bit"}, "parallel": {"mode": "fsdp"}}))


def test_a_tracker_hears_every_logged_step(toy, tmp_path, monkeypatch):
    """A tracker that is not installed is told at once; one that is gets the options and every line of the log."""
    from accelerate import tracking

    run = make(train={"tracker": "wandb", "steps": 3})
    monkeypatch.setattr("guidedcd.training.trackers.get_available_trackers", lambda: [])
    with pytest.raises(GuidedCDError, match="pip install wandb"):
        distil(run)

    class Heard(tracking.GeneralTracker):
        name, requires_logging_directory = "wandb", False
        said: list = []  # noqa: RUF012 - what all of them heard

        def __init__(self, run_name, **kwargs):
            super().__init__()

        def start(self):
            self.said.append("start")

        @property
        def tracker(self):
            return self

        def store_init_configuration(self, values):
            self.said.append(values["train.steps"])

        def log(self, values, step, **kwargs):
            self.said.append((step, values["cd_loss"]))

        def finish(self):
            self.said.append("finish")

    monkeypatch.setattr("guidedcd.training.trackers.get_available_trackers", lambda: ["wandb"])
    monkeypatch.setattr("guidedcd.training.trackers.filter_trackers", lambda name, folder: [name])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Heard)
    lines = trained(run, tmp_path / "a", tmp_path / "s")

    assert [one for one in Heard.said if one != "start"] == [3, *((x["step"], x["cd_loss"]) for x in lines), "finish"]


def test_validation_videos_do_not_disturb_the_training(toy, tmp_path):
    """Videos of the same prompts appear at intervals and in the report, and every number of the log stays the same."""
    train = {"steps": 4, "average": 0.5}
    plain = trained(make(train=train), tmp_path / "a", tmp_path / "s")
    run = make(train={**train, "validation": {"every": 2, "prompts": 3}}, evaluate={"steps": 2})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "run.json").write_text("{}")

    assert trained(run, tmp_path / "b", tmp_path / "s") == plain
    found = sorted((tmp_path / "b" / "validation").rglob("*.mp4"))
    assert [path.parent.name for path in found] == ["step-000002"] * 3 + ["step-000004"] * 3
    assert [path.name for path in found[:3]] == [path.name for path in found[3:]]
    assert read_json(found[3].with_suffix(".json"))["step"] == 4
    page = write_report(tmp_path / "b").read_text()
    assert page.count("<video") == 6
    assert "step 2" in page


def test_frames_are_decoded_one_by_one_where_memory_is_short(toy, tmp_path, monkeypatch):
    """`activation_checkpoint.decoder` decodes single frames, twice each, and changes no number beyond rounding."""
    from guidedcd.models.teachers.latent import LatentTeacher

    seen, decode = [], LatentTeacher.decode

    def counted(self, z, frames=None):
        seen.append((len(z), len(frames)))
        return decode(self, z, frames)

    monkeypatch.setattr(LatentTeacher, "decode", counted)
    lines = [
        trained(make(train={"steps": 1, "activation_checkpoint": {"decoder": on}}), tmp_path / str(on), tmp_path / "s")
        for on in (False, True)
    ]

    assert seen == [(2, 2)] + [(1, 1)] * 8
    assert lines[1][0]["grad_norm"] == pytest.approx(lines[0][0]["grad_norm"], rel=1e-4)


def test_checkpoints_of_an_average_can_be_sampled(toy, tmp_path):
    """A checkpoint's model.safetensors is the average, its online.safetensors what training goes on from."""
    run = make(train={"average": 0.5})
    trained(run, tmp_path / "a", tmp_path / "s")
    newest = checkpoint.paths(tmp_path / "a" / "checkpoints")[-1]
    mean, online = (load_file(newest / f"{name}.safetensors") for name in ("model", "online"))

    assert mean.keys() == online.keys()
    assert any(not torch.equal(mean[key], online[key]) for key in mean)


def test_temporal_layers_alone_can_be_recomputed(toy, tmp_path):
    """With `layers` "temporal" and "most", the backward pass runs temporal layers again, and no number changes."""
    from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer

    calls: dict[str, list[type]] = {}
    lines = {}
    for layers in ("none", "temporal", "most", "all"):
        run = make(train={"steps": 1, "activation_checkpoint": {"layers": layers, "decoder": False}})
        store = LatentStore(preprocess(run, store_folder=tmp_path / "s"))
        trainer = Trainer(run, tmp_path / layers, store, run.teacher.build())
        heard = calls.setdefault(layers, [])
        for module in trainer.step.student.network.modules():
            if (kind := type(module)) in (ResnetBlock2D, TemporalConvLayer):
                first = next(m for m in module.modules() if not list(m.children()))
                first.register_forward_hook(lambda m, a, o, kind=kind, heard=heard: heard.append(kind))
        lines[layers] = trainer.step(1)
    count = {name: (heard.count(ResnetBlock2D), heard.count(TemporalConvLayer)) for name, heard in calls.items()}

    spatial, temporal = count["none"]
    assert count["temporal"] == (spatial, temporal * 3 // 2)  # two forward passes, one of them with gradient
    assert count["most"] == count["temporal"]
    assert count["all"] == (spatial * 3 // 2, temporal * 3 // 2)
    assert lines["temporal"] == pytest.approx(lines["none"], rel=1e-4)
    assert lines["most"] == pytest.approx(lines["none"], rel=1e-4)


@pytest.mark.parametrize(
    ("layers", "decoder", "recomputed"),
    [
        ("none", None, False),
        ("all", None, True),
        ("most", None, False),
        ("most", True, True),
        ("all", False, False),
    ],
)
def test_the_decoder_is_recomputed_where_everything_is(layers, decoder, recomputed):
    """By default decoded frames are recomputed with `layers = "all"` alone; `decoder` decides otherwise."""
    config = ActivationCheckpointConfig(layers=layers, decoder=decoder)

    assert config.recomputes_decoder == recomputed


@pytest.mark.slow
def test_all_objectives_survive_a_kill_at_step_100(toy, tmp_path):
    """200 steps with energies and three rewards, killed at step 100 and continued: every number is the same."""
    run = make(
        data=[{"shapes": {}}],
        energy={"pta": {"relative": 0.3, "reference": "single-step"}, "toy": {"relative": 0.1}},
        rewards={name: {"frames": 2} for name in ("hps", "clip", "internv2")},
        routes={"short-caption": {}},
        train={
            "steps": 200,
            "reward_batch": 1,
            "average": 0.99,
            "checkpoint": {"every": 50},
            "lr_schedule": {"warmup": 20},
        },
    )
    straight = launch(run, tmp_path / "a", tmp_path / "s")
    process = launch(run, tmp_path / "b", tmp_path / "t")
    while not (tmp_path / "b" / "checkpoints" / "step-000100").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process = launch(run, tmp_path / "b", tmp_path / "t")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "continuing after step 100" in output
    assert straight.wait() == 0

    one, other = ([json.loads(x) for x in (tmp_path / f / "log.jsonl").read_text().splitlines()] for f in "ab")
    clock = ("seconds", "samples_per_second", "memory_gb")
    assert len(one) == 200
    assert [{k: v for k, v in x.items() if k not in clock} for x in one] == [
        {k: v for k, v in x.items() if k not in clock} for x in other
    ]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_resume(toy, tmp_path, parallel):
    """Two processes go on from a checkpoint of theirs to the same numbers, and so does one with twice the batch."""
    options = {"steps": 4, "average": 0.5, "parallel": {"mode": parallel}}
    run, folder = make(train=options), tmp_path / "a"
    found = []
    for _ in range(2):
        process = launch(run, folder, tmp_path / "s", TWO_PROCESSES)
        output, _ = process.communicate()
        assert process.returncode == 0, output
        found.append([json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()])
        shutil.rmtree(folder / "student")
    assert "continuing after step 2" in output
    assert found[0] == found[1]

    alone = trained(make(train={**options, "batch_size": 4}), folder, tmp_path / "other")
    assert [line["loss"] for line in alone[2:]] == pytest.approx(found[0][2:], rel=1e-3)


def test_the_learning_rate_warms_up_and_cools_down(toy, tmp_path):
    """It rises linearly over the first steps and falls linearly over the last ones."""
    run = make(
        train={"steps": 6, "log_every": 1, "optimizer": {"lr": 0.012}, "lr_schedule": {"warmup": 2, "cooldown": 3}}
    )
    distil(run, out=tmp_path / "r", store=tmp_path / "s")
    lines = [json.loads(line) for line in (tmp_path / "r" / "log.jsonl").read_text().splitlines()]

    assert [line["lr"] for line in lines] == pytest.approx([0.006, 0.012, 0.012, 0.012, 0.008, 0.004])
