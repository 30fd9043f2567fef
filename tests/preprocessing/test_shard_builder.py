"""The tensors of a shard equal those of single passes, and no pass is computed twice."""

from __future__ import annotations

from functools import partial

import attrs
import pytest
import torch
from stores import clips
from toy_plugin import make as toy_run

from guidedcd.acceleration.apply import accelerated
from guidedcd.config.run import Run
from guidedcd.data.clips import Clip
from guidedcd.diffusion.randomness import noise
from guidedcd.energies import inversion
from guidedcd.errors import GuidedCDError
from guidedcd.preprocessing.shard_builder import ShardBuilder

make = partial(toy_run, replace=("energy",))


def draw_by_draw(run: Run, teacher, some: list[Clip]) -> dict[str, dict]:
    """Predictions and scores with one sample per pass, by energy or kind of prediction and number of the job."""
    energies, grid = run.build("energy"), teacher.schedule.grid(run.solver.steps)
    builder = ShardBuilder(run, teacher)
    tensors: dict[str, dict] = {"cond": {}, "uncond": {}} | {name: {} for name in energies}
    work = builder.shard_jobs(some)
    for number, job in enumerate(work.jobs):
        z0, cond, seed = work.z0[[job.video]], {k: v[[job.video]] for k, v in work.cond.items()}, work.seeds[job.video]
        t = grid[[job.index]]
        z = teacher.schedule.add_noise(z0, noise(seed, job.draw, z0.shape[1:])[None], t)
        with torch.no_grad():
            tensors["cond"][number] = teacher.net(z, t, cond)[0]
            tensors["uncond"][number] = teacher.net(z, t, teacher.null(1))[0]
        for name, energy in energies.items() if job.scored else ():
            match run.energies[name].reference:
                case "inversion":
                    *_, (_, at) = inversion.invert(teacher, z0, cond, run.solver.steps, job.index)
                case "single-step":
                    at = teacher.schedule.add_noise(z0, noise(seed, job.draw + 2**31, z0.shape[1:])[None], t)
                case _:
                    at = z0
            with torch.no_grad():
                when = torch.zeros_like(t) if run.energies[name].reference == "clean" else t
                reference = teacher.seen(at, when, cond, energy.needs)
            leaf = z.clone().requires_grad_()
            value = energy(teacher.seen(leaf, t, cond, energy.needs), reference)
            tensors[name][number] = torch.autograd.grad(value.sum(), leaf)[0][0]
    return tensors


ENERGIES = {
    "records": {"pta": {}},
    "output": {"toy": {"reference": "clean"}},
    "both": {"pta": {"reference": "single-step", "layers": "mid_block,up_blocks.1", "top": 2}, "toy": {}},
    "ties": {"pta": {"ties": "all"}},
}


HOW = [
    ("records", {}),
    ("output", {"recompute": "most", "fast": "layers"}),
    ("both", {"recompute": "cheap"}),
    ("ties", {"recompute": "most", "fast": "layers"}),
]


@pytest.mark.parametrize(("kind", "how"), HOW, ids=str)
def test_full_passes_equal_single_ones(toy, kind, how):
    """Shared inversions, early ends, kept maxima, recomputed activations and fast layers change rounding only."""
    run = make(energy=ENERGIES[kind], solver={"steps": 4}, preprocess={"fraction": 0.7, "draws_per_video": 2, **how})
    teacher = run.teacher.build()
    some = clips(3, teacher)
    expected = draw_by_draw(run, teacher, some)
    with accelerated(teacher, fast=run.preprocess.fast, precision=run.preprocess.precision) as quick:
        _, tensors = ShardBuilder(run, quick).shard(some, lambda share: None)

    def compare(computed: torch.Tensor, single: torch.Tensor) -> None:
        assert (computed - single).norm() <= 2e-4 * single.norm()

    for place in range(6):
        compare(tensors["cond_output"].flatten(0, 1)[place], expected["cond"][place])
        compare(tensors["uncond_output"].flatten(0, 1)[place], expected["uncond"][place])
    for name in run.energies:
        rows = tensors[f"row.{name}"].flatten()
        assert {p for p in range(6) if rows[p] >= 0} == set(expected[name]) != set()
        for place, score in expected[name].items():
            compare(tensors[f"score.{name}"][rows[place]] * tensors[f"rms.{name}"][rows[place]], score)


def test_draws_come_from_their_part_of_the_grid(toy):
    """With noise_range .2 to .6 on 50 points every index is 10 to 29, evenly spread; the whole grid is as it was."""
    run = make(solver={"steps": 50}, preprocess={"draws_per_video": 8, "noise_range": (0.2, 0.6)})
    whole = make(solver={"steps": 50}, preprocess={"draws_per_video": 8})
    teacher = run.teacher.build()
    some = [job.index for job in ShardBuilder(run, teacher).jobs(range(200))]
    every = [job.index for job in ShardBuilder(whole, teacher).jobs(range(200))]

    assert set(some) == set(range(10, 30)) and set(every) == set(range(50))
    assert [10 + int(0.4 * i) for i in every[:8]] == pytest.approx(some[:8], abs=1)
    assert abs(sum(some) / len(some) - 19.5) < 0.2


def test_an_energy_without_draws_is_refused(toy):
    """An energy of the noisiest half never acts on draws from the cleanest four tenths: an error, not a silent no."""
    with pytest.raises(GuidedCDError, match="never act"):
        make(energy={"pta": {"fraction": 0.5}}, preprocess={"noise_range": (0.0, 0.4)})
    make(energy={"pta": {"fraction": 0.5}}, preprocess={"noise_range": (0.0, 0.6)})


def test_no_pass_is_computed_twice(toy):
    """Rows of the network per shard: one inversion per video to its last reference, then 3 per scored draw, else 2."""
    run = make(energy={"pta": {}}, preprocess={"draws_per_video": 4, "batch_size": 2})
    teacher = run.teacher.build()
    rows = []
    teacher.network.register_forward_pre_hook(lambda m, a: rows.append(len(a[0])))
    builder, shares = ShardBuilder(run, teacher), []
    work = builder.shard_jobs(some := clips(5, teacher))
    scored = [job for job in work.jobs if job.scored]
    last = {v: max((job.index for job in scored if job.video == v), default=-1) for v in range(5)}
    builder.shard(some, shares.append)

    assert sum(rows) == sum(last.values()) + 5 + 3 * len(scored) + 2 * (20 - len(scored))
    assert max(rows) == builder.rows == 4
    assert sum(shares) == pytest.approx(1)


def test_half_precision_leaves_the_teacher_alone(toy):
    """bfloat16 runs on a copy, near the float32 results, latents in float32; the teacher is given back as it was."""
    run = make(energy={"pta": {}}, preprocess={"precision": "bf16", "fast": "layers"})
    teacher = run.teacher.build()
    before, some = {k: v.clone() for k, v in teacher.network.state_dict().items()}, clips(3, teacher)
    exact = ShardBuilder(run, teacher).shard(some, lambda share: None)[1]
    with accelerated(teacher, fast=run.preprocess.fast, precision=run.preprocess.precision) as quick:
        assert (quick.dtype, teacher.dtype) == (torch.bfloat16, torch.float32)
        assert quick.fingerprint() == teacher.fingerprint()
        rounded = ShardBuilder(run, quick).shard(some, lambda share: None)[1]

    after = teacher.network.state_dict()
    assert all(torch.equal(v, after[k]) and v.stride() == after[k].stride() for k, v in before.items())
    assert torch.equal(rounded["z0"], exact["z0"])
    error = (rounded["cond_output"] - exact["cond_output"]).norm() / exact["cond_output"].norm()
    assert 1e-5 < error < 0.05


def test_compiled_layers_run_in_three_sizes(toy):
    """With compiled layers every pass has one of three sizes, and the results are the same."""
    run = make(energy={"pta": {}}, preprocess={"batch_size": 4})
    teacher = run.teacher.build()
    some = clips(5, teacher)
    plain = ShardBuilder(run, teacher).shard(some, lambda share: None)[1]
    rows: set[int] = set()
    teacher.network.register_forward_pre_hook(lambda m, a: rows.add(len(a[0])))
    compiled = attrs.evolve(run, preprocess=attrs.evolve(run.preprocess, fast="blocks"))
    even = ShardBuilder(compiled, teacher).shard(some, lambda share: None)[1]

    assert rows <= {2, 4, 8}
    assert plain.keys() == even.keys()
    for key, value in plain.items():
        assert value.shape == even[key].shape
        torch.testing.assert_close(value, even[key], atol=1e-4, rtol=1e-3)
