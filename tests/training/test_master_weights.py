"""Float32 master weights and averages of the trained weights."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from safetensors.torch import load_file
from short_training import trained
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from toy_plugin import make

from guidedcd.errors import GuidedCDError
from guidedcd.models.student import Student
from guidedcd.preprocessing.preprocess import preprocess
from guidedcd.preprocessing.store import LatentStore
from guidedcd.training.master_weights import MasterWeights, copy_all
from guidedcd.training.trainer import Trainer
from guidedcd.workflow import distil


def network() -> nn.Module:
    """Two layers, the second one frozen."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    layers[1].requires_grad_(False)
    return layers


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
def test_averaged_loads_the_average_for_a_while(dtype):
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


def test_load_restores_a_state():
    """Weights and average come back in float32, and the bfloat16 network and target follow."""
    first, second = (MasterWeights(network(), dtype=torch.bfloat16, decay=0.9, target=network()) for _ in range(2))
    with torch.no_grad():
        first.masters[0].add_(0.123)
    first.publish()
    second.load(first.state(), first.state(averaged=True))

    for loaded, saved in ((second.state(), first.state()), (second.state(averaged=True), first.state(averaged=True))):
        assert all(torch.equal(loaded[key], saved[key]) for key in saved)
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
        output = student.eval()(z, t, teacher.embed(["x"]), torch.tensor([3.0]))
        torch.testing.assert_close(output, other.net(z, t, other.embed(["x"])), atol=1e-6, rtol=1e-5)


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
    with pytest.raises(GuidedCDError, match="`student.ema` and `train.average` both average the weights"):
        make(student={"ema": 0.9}, train={"average": 0.5})


def test_eight_bit_states_need_their_package(toy, tmp_path, monkeypatch):
    """Without bitsandbytes an error names the package before anything is computed; with it AdamW8bit is used."""
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


def test_weights_of_two_dtypes_are_copied_in_two_operations():
    """Of a mixed list, PyTorch would launch one copy for each tensor."""
    kinds = [torch.bfloat16, torch.float32, torch.bfloat16, torch.float32, torch.bfloat16]
    into = [torch.zeros(3, dtype=kind) for kind in kinds]
    values = [torch.full((3,), 1 / 3 + number) for number in range(5)]
    with Operations() as operations:
        copy_all(into, values)

    assert operations.names == ["_foreach_copy_"] * 2
    for one, value, kind in zip(into, values, kinds, strict=True):
        assert torch.equal(one, value.to(kind))


class Operations(TorchDispatchMode):
    """Records the names of the operations that PyTorch calls."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Call the operation and record its name."""
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))
