"""Networks in 16 bits without the layers that stay in float32."""

from __future__ import annotations

import torch
from torch import nn

from guidedcd.acceleration.apply import accelerated
from guidedcd.acceleration.precision import cast, computing_dtype
from guidedcd.training.master_weights import MasterWeights


class Kept(nn.Module):
    """A network whose norm, and whose buffer of angles, stay in float32."""

    _keep_in_fp32_modules = ("norm", "angles")

    def __init__(self) -> None:
        """Two layers."""
        super().__init__()
        self.norm = nn.LayerNorm(3)
        self.layer = nn.Linear(3, 3)
        self.register_buffer("angles", torch.rand(3))
        self.register_buffer("scale", torch.rand(3))


def dtypes(network: nn.Module) -> dict[str, torch.dtype]:
    """The dtype of every weight and buffer."""
    return {name: value.dtype for name, value in network.state_dict().items()}


def test_named_layers_stay_in_float32():
    """What is below the names of the class stays, all else is cast, and the network computes in 16 bits."""
    network = Kept()
    before = network.angles.clone()
    cast(network, torch.bfloat16)
    narrow = {name for name, dtype in dtypes(network).items() if dtype == torch.bfloat16}
    assert narrow == {"layer.weight", "layer.bias", "scale"}
    assert computing_dtype(network) == torch.bfloat16 and torch.equal(network.angles, before)


def test_a_teacher_in_16_bits_keeps_them_too():
    """`accelerated` casts a copy of a teacher's network by the same rule."""

    class Teacher:
        network = Kept()

        def fingerprint(self) -> str:
            return "0"

    with accelerated(Teacher(), fast="no", precision="bf16") as teacher:
        assert dtypes(teacher.network)["norm.weight"] == torch.float32
        assert dtypes(teacher.network)["layer.weight"] == torch.bfloat16
    assert computing_dtype(Teacher.network) == torch.float32


def test_masters_of_kept_layers_are_not_lost():
    """Loading the average and the weights back leaves every master as it was, those of uncast layers included."""
    network = Kept()
    weights = MasterWeights(network, dtype=torch.bfloat16, decay=0.5)
    masters = [master.clone() for master in weights.masters]
    for mean in weights.average:
        mean += 1
    with weights.averaged():
        torch.testing.assert_close(network.norm.weight.detach(), masters[0] + 1)
    assert all(torch.equal(one, other) for one, other in zip(masters, weights.masters, strict=True))
    torch.testing.assert_close(network.norm.weight.detach(), masters[0])
