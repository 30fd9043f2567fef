"""A network spread over processes: its optimiser, its averages and its checkpoints; here in one process."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from guidedcd.training.distributed import WHOLE, shard, sharded_parameters
from guidedcd.training.master_weights import MasterWeights
from guidedcd.training.sharded_weights import ShardedWeights


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    """A process group of this process alone."""
    file = tmp_path_factory.mktemp("group") / "file"
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def network() -> nn.Module:
    """Two layers with a norm between them."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def spread(mesh, *, dtype=None, **options) -> tuple[nn.Module, ShardedWeights]:
    """A network after `shard`, and its weights."""
    net = network()
    shard(net, mesh, dtype, keep=True)
    return net, ShardedWeights(net, dtype=dtype, **options)


def step(weights: MasterWeights, net: nn.Module, x: torch.Tensor, passes: int = 1) -> torch.Tensor:
    """Some backward passes, clipping, a step of gradient descent; returns the norm."""
    for _ in range(passes):
        net(x).float().square().sum().backward()
        weights.collect()
    norm = weights.clip(0.5)
    with torch.no_grad():
        for master in weights.masters:
            master -= 0.1 * master.grad
            master.grad = None
    weights.publish()
    return norm


@pytest.mark.parametrize("passes", [1, 2])
def test_a_step_equals_that_of_whole_weights(mesh, passes):
    """Norm, clipped step, average and output of a spread network are those of the same one in one piece."""
    plain, x = network(), torch.randn(5, 3)
    own = MasterWeights(plain, decay=0.5)
    net, weights = spread(mesh, decay=0.5)
    for _ in range(3):
        torch.testing.assert_close(step(weights, net, x, passes), step(own, plain, x, passes))
    torch.testing.assert_close(net(x), plain(x))
    for averaged in (False, True):
        state, expected = weights.state(averaged=averaged), own.state(averaged=averaged)
        assert state.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(state[name], value)


def test_the_smallest_matrices_stay_whole():
    """Of all parameters, vectors and the smallest matrices up to a sixteenth of all numbers are not spread."""
    sizes = [1, 40, 2, 3, 50, 4]
    net = nn.ParameterList([nn.Parameter(torch.zeros(size, 1)) for size in sizes] + [nn.Parameter(torch.zeros(99))])
    spread_ones = [parameter in sharded_parameters(net) for parameter in net]

    assert spread_ones == [False, True, False, False, True, True, False]
    assert 1 + 2 + 3 <= WHOLE * sum(sizes) < 1 + 2 + 3 + 4
    assert sharded_parameters(nn.Linear(2, 2, bias=False))


def test_adapters_that_all_stay_whole_are_trained(mesh):
    """Where only small matrices of a large network are trained, a step equals that of the network in one piece."""

    def build() -> nn.Module:
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 1, bias=False))
        net[0].requires_grad_(False)
        return net

    plain, net, x = build(), build(), torch.randn(5, 40)
    shard(net, mesh, None, keep=True)
    own, weights = MasterWeights(plain), ShardedWeights(net)
    assert not any(isinstance(p, DTensor) for p in weights.working)
    for _ in range(2):
        torch.testing.assert_close(step(weights, net, x), step(own, plain, x))
    torch.testing.assert_close(weights.state(), own.state())


def test_vectors_stay_whole_and_masters_are_plain_float32(mesh):
    """Matrices are spread, vectors are bfloat16 parameters, and masters are plain float32 tensors."""
    net, weights = spread(mesh, dtype=torch.bfloat16)

    for name, parameter in net.named_parameters():
        assert isinstance(parameter, DTensor) == (parameter.dim() > 1), name
        assert parameter.dtype == (torch.float32 if parameter.dim() > 1 else torch.bfloat16), name
    assert all(not isinstance(m, DTensor) and m.dtype == torch.float32 for m in weights.masters)
    before = copy.deepcopy(weights.state())
    step(weights, net, torch.randn(5, 3).bfloat16())
    assert all(not torch.equal(value, before[name]) for name, value in weights.state().items())
    assert torch.equal(net[1].weight, weights.masters[weights.names.index("1.weight")].bfloat16())


def test_what_stays_in_float32_is_whole_and_computes_in_float32(mesh):
    """Matrices that a class keeps in float32 are whole float32 parameters; the others are gathered in bfloat16."""

    class Net(nn.Module):
        _keep_in_fp32_modules = ("time",)

        def __init__(self):
            super().__init__()
            self.time, self.linear = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.linear(self.time(x).bfloat16())

    plain = Net()
    net, x = copy.deepcopy(plain), torch.randn(5, 8)
    own = MasterWeights(plain, dtype=torch.bfloat16)
    shard(net, mesh, torch.bfloat16, keep=True)
    weights = ShardedWeights(net, dtype=torch.bfloat16)

    assert net.time.weight.dtype == torch.float32 and not isinstance(net.time.weight, DTensor)
    assert isinstance(net.linear.weight, DTensor)
    assert torch.equal(net(x), plain(x))
    torch.testing.assert_close(step(weights, net, x), step(own, plain, x))
    torch.testing.assert_close(weights.state(), own.state())


def test_no_forward_pass_has_weights_of_before(mesh):
    """A network that was put together without a backward pass shows new weights, its average, and the weights again."""
    net, weights = spread(mesh, decay=0.9)
    x = torch.randn(5, 3)
    fresh = copy.deepcopy(weights.state())
    step(weights, net, x)
    averages = copy.deepcopy(weights.state(averaged=True))
    with torch.no_grad():
        moved = net(x)  # put together, and kept so
        with weights.averaged():
            mean = net(x)
        assert torch.equal(net(x), moved)
        weights.load(fresh, fresh)
        first = net(x)

    plain = network()
    torch.testing.assert_close(first, plain(x))
    plain.load_state_dict(averages)
    torch.testing.assert_close(mean, plain(x))
    assert not torch.allclose(mean, moved)


def test_optimiser_states_are_gathered_and_sharded_again(mesh):
    """An optimiser's state of a part becomes one of the whole weight, and that the same part."""
    _, weights = spread(mesh)
    for n, master in enumerate(weights.masters):
        value = torch.randn_like(master)
        whole = weights.whole(n, value)
        assert whole.shape == weights.working[n].shape
        assert torch.equal(weights.own(n, whole), value)
