"""Energies of attention on every family: what they read is what diffusers' attention computes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny_pipelines
import torch
from guidedcd_attention_energies import AMFConfig
from guidedcd_attention_energies.displacements import AMF
from short_training import trained
from torch.nn import functional as nnf
from torch.overrides import TorchFunctionMode

from guidedcd.config.resolve import run_from_dict
from guidedcd.errors import GuidedCDError
from guidedcd.planning.preprocess_cost import guided
from guidedcd.planning.skeletons import outline

ALL = [(family, name) for family, sizes in tiny_pipelines.SIZES.items() for name in sizes]
EVERY = pytest.mark.parametrize(
    ("family", "name"),
    [pytest.param(*one, marks=[] if one[1] == "small" else pytest.mark.slow, id="-".join(one)) for one in ALL],
)
FIRST = pytest.mark.parametrize(("family", "name"), [(f, next(iter(s))) for f, s in tiny_pipelines.SIZES.items()])
PROMPTS = ["a red ball moves left", "two boats in the rain"]


class Attended(TorchFunctionMode):
    """Records the queries, keys and values of every `scaled_dot_product_attention` inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record, and call."""
        kwargs = kwargs or {}
        if func is nnf.scaled_dot_product_attention:
            self.calls.append(args or (kwargs["query"], kwargs["key"], kwargs["value"]))
        return func(*args, **kwargs)


def latents(teacher: Any, seed: int = 0) -> torch.Tensor:
    """Noise (2, C, F, h, w)."""
    return torch.randn(2, *teacher.geometry.latent_shape, generator=torch.Generator().manual_seed(seed))


@EVERY
def test_queries_and_keys_are_those_of_the_attention(tiny, family, name):
    """In every block, records equal what diffusers' attention multiplies, and attention by them is its output."""
    teacher = tiny(family, name).teacher.teacher
    t, cond = torch.tensor([900, 950]), teacher.embed(PROMPTS)
    network = teacher.network_at(t)
    paths = [path for path, _ in network.named_modules() if path.endswith(".attn1")]
    assert len(paths) == network.config.num_layers
    for number, path in enumerate(paths):
        need, outputs = f"self-attention:{number}", []
        module, within = network.get_submodule(path), Attended()

        def enter(*_: Any, mode: Any = within) -> None:
            mode.__enter__()

        def leave(_: Any, __: Any, output: Any, mode: Any = within, outputs: list = outputs) -> None:
            mode.__exit__(None, None, None)
            outputs.append(output[0] if isinstance(output, tuple) else output)

        handles = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        with torch.no_grad():
            seen = teacher.seen(latents(teacher), t, cond, (need,))
        for handle in handles:
            handle.remove()
        ((queries, keys, values),) = within.calls
        record = {key: value.flatten(2, 4) for key, value in seen.records[need].items()}
        text = queries.shape[2] - record["queries"].shape[2]
        assert (text > 0) == (family == "cogvideox")
        torch.testing.assert_close(record["queries"], queries[:, :, text:], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(record["keys"], keys[:, :, text:], rtol=1e-5, atol=1e-5)

        joint = torch.cat([keys[:, :, :text], record["keys"]], dim=2)
        weights = (record["queries"] @ joint.transpose(-1, -2) / record["queries"].shape[-1] ** 0.5).softmax(-1)
        with torch.no_grad():
            attended = module.to_out[0]((weights @ values).transpose(1, 2).flatten(2))
        torch.testing.assert_close(attended, outputs[0], rtol=1e-4, atol=1e-5)


@FIRST
@pytest.mark.parametrize("energy", ["amf", "pta-3d"])
def test_energies_guide_the_teachers_samples(tiny, family, name, energy):
    """A sample of the teacher that is guided towards a reference video is finite and differs from one that is not."""
    one = tiny(family, name)
    size = one.size
    reference = torch.rand(
        1, size["frames"], 3, size["height"], size["width"], generator=torch.Generator().manual_seed(0)
    )
    options = {"relative": 0.05, "fraction": 1.0, "reference": "single-step"}
    result = one.teacher.sample_guided(
        "a red ball", energies={energy: options}, reference=reference, steps=3, seeds=[1]
    )
    plain = one.teacher.sample("a red ball", steps=3, seeds=[1], solver="ddim")
    assert not torch.equal(result.videos, plain)
    assert result.videos.isfinite().all()


def test_experts_record_their_own_attention(tiny):
    """The expert of the timestep is recorded, and timesteps of both experts in one pass are refused."""
    teacher = tiny("wan", "experts").teacher.teacher
    cond, z, need = teacher.embed(PROMPTS), latents(teacher), "self-attention:1"
    for expert, t in ((teacher.network, 950), (teacher.other, 5)):
        assert teacher.network_at(torch.tensor([t, t])) is expert
        ran = []
        handle = expert.blocks[1].attn1.register_forward_pre_hook(lambda *_, ran=ran: ran.append(1))
        teacher.seen(z, torch.tensor([t, t]), cond, (need,))
        handle.remove()
        assert ran
    with pytest.raises(GuidedCDError, match="both experts"):
        teacher.seen(z, torch.tensor([950, 5]), cond, (need,))


def run_of(one: Any) -> Any:
    """A run of both energies."""
    return run_from_dict(
        {
            "device": "cpu",
            "teacher": {one.family: {"path": str(one.folder), **one.size}},
            "data": [{"shapes": {"size": 8}}],
            "energies": {
                "amf": {"relative": 0.2, "fraction": 1.0, "reference": "single-step", "block": 1},
                "pta-3d": {"relative": 0.2, "fraction": 1.0},
            },
            "solver": {"steps": 20, "omega": [1.0, 3.0]},
            "preprocess": {"videos": 4, "draws_per_video": 2, "batch_size": 2, "shard_size": 2, "fraction": 1.0},
            "train": {"steps": 2, "batch_size": 2, "log_every": 1},
        }
    )


@FIRST
def test_a_plan_counts_the_passes_of_attention_energies(tiny, family, name):
    """A plan counts the energies' passes on the meta device and leaves out none."""
    run = run_of(tiny(family, name))
    _, left_out = guided(run, outline(run.teacher))
    assert left_out == ""


def test_a_run_trains_with_attention_energies(tiny, tmp_path):
    """Scores of both energies are computed, stored and learnt: their shares are logged, positive and finite."""
    log = trained(run_of(tiny("wan", "small")), tmp_path / "run", tmp_path / "store")
    for name in ("amf", "pta-3d"):
        shares = [value for line in log for key, value in line.items() if name in key and isinstance(value, float)]
        assert shares and all(0 < value < float("inf") for value in shares)


@pytest.mark.gpu
@FIRST
def test_the_gpu_has_the_same_energies(tiny, family, name):
    """Energies and their gradients on a GPU equal those of the CPU but for rounding, and bfloat16 is finite."""
    teacher = tiny(family, name).teacher.teacher
    energy, results = AMF(AMFConfig()), []
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.float32), ("cuda", torch.bfloat16)):
        own = copy.deepcopy(teacher).to(device, dtype)
        t, cond = torch.tensor([900, 950], device=device), own.embed(PROMPTS)
        target = energy.keep(own.seen(latents(own, 1).to(device, dtype), t, cond, energy.needs, tail="none"))
        z = latents(own).to(device, dtype).requires_grad_()
        value = energy(own.seen(z, t, cond, energy.needs, tail="detached"), target)
        (gradient,) = torch.autograd.grad(value.sum(), z)
        assert value.isfinite().all() and gradient.isfinite().all()
        results.append((value.detach().cpu(), gradient.float().cpu()))
    torch.testing.assert_close(results[1], results[0], rtol=1e-2, atol=1e-3)
