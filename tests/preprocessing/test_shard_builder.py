"""The latent store at speed: full passes equal plain ones, parts equal a whole, and what is damaged is found."""

from __future__ import annotations

import errno
import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import attrs
import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_plugin import make as toy_run

from guidedcd.acceleration.activation_checkpointing import recomputing
from guidedcd.acceleration.apply import accelerated
from guidedcd.acceleration.prefetch import prefetched
from guidedcd.acceleration.switch import speed_up
from guidedcd.cli import main
from guidedcd.cli.preprocess import part
from guidedcd.config.run import Run
from guidedcd.data.clips import Clip
from guidedcd.diffusion.randomness import noise
from guidedcd.documents import read_json
from guidedcd.energies import inversion
from guidedcd.errors import GuidedCDError
from guidedcd.files import file_digest, write_json
from guidedcd.models.attention_probes import recorded_layers, temporal_layers
from guidedcd.preprocessing import estimates
from guidedcd.preprocessing.preprocess import preprocess
from guidedcd.preprocessing.shard_builder import ShardBuilder
from guidedcd.preprocessing.shards import shard_name
from guidedcd.preprocessing.show import show_store
from guidedcd.preprocessing.store import LatentStore
from guidedcd.preprocessing.verify import verify_store

TESTS = Path(__file__).parents[1]
make = partial(toy_run, replace=("energy",))


def files(folder: Path) -> dict[str, bytes]:
    """What the shards of a store hold."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*"))}


def clips(count: int, teacher) -> list[Clip]:
    """Random clips."""
    shape = teacher.geometry.pixel_shape
    videos = [torch.rand(shape, generator=torch.Generator().manual_seed(i)) for i in range(count)]
    return [Clip(id=f"c/{i}", dataset="c", caption=f"clip {i}", video=video) for i, video in enumerate(videos)]


def plainly(run: Run, teacher, some: list[Clip]) -> dict[str, dict]:
    """The store's pieces draw by draw, one sample per pass, by the functions that do one thing each."""
    energies, grid = run.build("energy"), teacher.schedule.grid(run.solver.steps)
    worker = ShardBuilder(run, teacher)
    found: dict[str, dict] = {"cond": {}, "uncond": {}} | {name: {} for name in energies}
    work = worker.shard_jobs(some)
    for place, job in enumerate(work.jobs):
        z0, cond, seed = work.z0[[job.video]], {k: v[[job.video]] for k, v in work.cond.items()}, work.seeds[job.video]
        t = grid[[job.index]]
        z = teacher.schedule.add_noise(z0, noise(seed, job.draw, z0.shape[1:])[None], t)
        with torch.no_grad():
            found["cond"][place] = teacher.net(z, t, cond)[0]
            found["uncond"][place] = teacher.net(z, t, teacher.null(1))[0]
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
            found[name][place] = torch.autograd.grad(value.sum(), leaf)[0][0]
    return found


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
def test_full_passes_equal_plain_ones(toy, kind, how):
    """Shared inversions, early ends, kept maxima, recomputed activations and fast layers change rounding only."""
    run = make(energy=ENERGIES[kind], solver={"steps": 4}, preprocess={"window": 0.7, "draws_per_video": 2, **how})
    teacher = run.teacher.build()
    some = clips(3, teacher)
    wanted = plainly(run, teacher, some)
    with accelerated(teacher, fast=run.preprocess.fast, precision=run.preprocess.precision) as quick:
        _, tensors = ShardBuilder(run, quick).shard(some, lambda share: None)

    def compare(mine: torch.Tensor, theirs: torch.Tensor) -> None:
        assert (mine - theirs).norm() <= 2e-4 * theirs.norm()

    for place in range(6):
        compare(tensors["cond_output"].flatten(0, 1)[place], wanted["cond"][place])
        compare(tensors["uncond_output"].flatten(0, 1)[place], wanted["uncond"][place])
    for name in run.energies:
        rows = tensors[f"row.{name}"].flatten()
        assert {p for p in range(6) if rows[p] >= 0} == set(wanted[name]) != set()
        for place, score in wanted[name].items():
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


def test_no_pass_is_made_twice(toy):
    """Rows of the network per shard: one inversion per video to its last reference, then 3 per scored draw, else 2."""
    run = make(energy={"pta": {}}, preprocess={"draws_per_video": 4, "batch_size": 2})
    teacher = run.teacher.build()
    rows = []
    teacher.network.register_forward_pre_hook(lambda m, a: rows.append(len(a[0])))
    worker, told = ShardBuilder(run, teacher), []
    work = worker.shard_jobs(some := clips(5, teacher))
    scored = [job for job in work.jobs if job.scored]
    last = {v: max((job.index for job in scored if job.video == v), default=-1) for v in range(5)}
    worker.shard(some, told.append)

    assert sum(rows) == sum(last.values()) + 5 + 3 * len(scored) + 2 * (20 - len(scored))
    assert max(rows) == worker.rows == 4
    assert sum(told) == pytest.approx(1)


def test_parts_equal_a_whole(toy, tmp_path):
    """--shard 0/2 and 1/2, in one folder or in two put together, give the files of one run, byte for byte."""
    run = make(solver={"steps": 4}, preprocess={"shard_size": 1, "videos": 4, "draws_per_video": 2})
    whole = files(preprocess(run, store_folder=tmp_path / "whole"))
    for number in (1, 0):
        preprocess(run, store_folder=tmp_path / "one", shard=(number, 2))
        preprocess(run, store_folder=tmp_path / f"part-{number}", shard=(number, 2))
    for path in (tmp_path / "part-1").glob("shard-*"):
        shutil.copy(path, tmp_path / "part-0")

    assert len(whole) == 8
    assert files(tmp_path / "one") == files(tmp_path / "part-0") == whole
    assert len(LatentStore(preprocess(run, store_folder=tmp_path / "part-0", fill_parts=False))) == 8


def test_an_incomplete_store_says_what_is_missing(toy, tmp_path):
    """Opening or training on a store filled in part names the missing shards; a plain preprocess fills them."""
    run = make(preprocess={"shard_size": 1})
    folder = preprocess(run, store_folder=tmp_path / "s", shard=(1, 3))

    for ask in (lambda: LatentStore(folder), lambda: preprocess(run, store_folder=folder, fill_parts=False)):
        with pytest.raises(GuidedCDError, match=r"3 of its 5 shards are missing \(0, 2, 3\).*--shard I/N"):
            ask()
    assert len(files(folder)) == 4
    assert len(LatentStore(preprocess(run, store_folder=folder))) == 15


def test_parts_may_be_written_together(toy, tmp_path, monkeypatch):
    """While one part is written another may be; the same part, or the whole, may not."""
    from guidedcd.preprocessing import store

    run, save = make(preprocess={"shard_size": 1, "videos": 4, "draws_per_video": 1}), store.save_shard
    refused = []

    def nested(*args):
        monkeypatch.setattr(store, "save_shard", save)
        for shard in ((0, 2), (0, 1), (1, 2)):
            try:
                preprocess(run, store_folder=tmp_path / "s", shard=shard)
            except GuidedCDError as error:
                refused.append((shard, "being written by another process" in str(error)))
        save(*args)

    monkeypatch.setattr(store, "save_shard", nested)
    preprocess(run, store_folder=tmp_path / "s", shard=(0, 2))

    assert refused == [((0, 2), True), ((0, 1), True)]
    assert len(LatentStore(tmp_path / "s")) == 4


def test_a_part_is_given_as_a_fraction():
    """--shard takes 0/1 to N-1/N, and says so."""
    assert (part(None), part("0/1"), part("3/4")) == ((0, 1), (0, 1), (3, 4))
    for wrong in ("4/4", "1", "a/b", "-1/2", "1/0", "0/0"):
        with pytest.raises(GuidedCDError, match="--shard must be I/N"):
            part(wrong)


def test_a_store_that_cannot_fit_is_refused_at_once(toy, tmp_path, monkeypatch):
    """Too little room is one sentence with both sizes, before anything is written."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(estimates.shutil, "disk_usage", lambda path: usage._replace(free=1000))

    with pytest.raises(GuidedCDError, match=r"needs about .* KB .*has 1 KB free: choose another --store"):
        preprocess(make(), store_folder=tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("energies", [{}, {"pta": {}, "toy": {}}])
def test_the_size_is_known_before(toy, tmp_path, energies):
    """The estimate is within a tenth of what is written, apart from headers."""
    run = make(energy=energies, preprocess={"videos": 8, "draws_per_video": 4, "shard_size": 8, "dtype": "float16"})
    folder = preprocess(run, store_folder=tmp_path / "s")
    written = sum(t.nbytes for t in load_file(folder / f"{shard_name(0)}.safetensors").values())

    assert estimates.store_size(run, run.teacher.build()).total == pytest.approx(written, rel=0.1)


def test_a_disk_that_fills_up_keeps_what_is_done(toy, tmp_path, monkeypatch):
    """A shard that could not be written is told in one sentence; then the same command goes on to the same store."""
    from guidedcd.preprocessing import store

    run, save, calls = make(preprocess={"videos": 3, "draws_per_video": 1}), store.save_file, []
    whole = files(preprocess(run, store_folder=tmp_path / "whole"))

    def full(tensors, path):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(tensors, path)

    monkeypatch.setattr(store, "save_file", full)
    with pytest.raises(GuidedCDError, match=r"the disk is full: .*shard-00001.*the same command continues"):
        preprocess(run, store_folder=tmp_path / "s")
    assert sorted(files(tmp_path / "s")) == ["shard-00000.json", "shard-00000.safetensors"]
    assert files(preprocess(run, store_folder=tmp_path / "s")) == whole


def test_verify_finds_a_flipped_bit(toy, tmp_path, capsys):
    """One bit of one shard, or its missing file, is found and named, with exit status 2; a whole store passes."""
    run = make(energy={"pta": {}}, solver={"steps": 4}, preprocess={"draws_per_video": 2})
    folder = preprocess(run, store_folder=tmp_path / "s")
    found = verify_store(folder, samples=9)
    assert (found["shards"], found["missing"], len(found["samples"])) == (3, 0, 5)
    assert max(error for one in found["samples"].values() for error in one.values()) < 1e-4

    path = folder / f"{shard_name(1)}.safetensors"
    data = bytearray(path.read_bytes())
    data[-7] ^= 4
    path.write_bytes(data)
    with pytest.raises(GuidedCDError, match=r"shard-00001\.safetensors is damaged \(its checksum differs\)\. Delete"):
        verify_store(folder)
    with pytest.raises(SystemExit) as stopped:
        main(["store", "verify", str(folder), "--samples", "0"])
    assert stopped.value.code == 2
    assert "shard-00001.safetensors is damaged" in capsys.readouterr().err
    (folder / f"{shard_name(2)}.safetensors").unlink()
    with pytest.raises(GuidedCDError, match=r"shard-00001.*, and so are shard-00002"):
        verify_store(folder)


@pytest.mark.parametrize("key", ["cond_output", "score.pta", "z0"])
def test_verify_asks_the_teacher(toy, tmp_path, key):
    """Values that the teacher would not say are found where checksums are right, and the shard is named."""
    run = make(energy={"pta": {}}, preprocess={"videos": 2})
    folder = preprocess(run, store_folder=tmp_path / "s")
    path, about = (folder / f"{shard_name(0)}.{ending}" for ending in ("safetensors", "json"))
    tensors = load_file(path)
    tensors[key] = tensors[key] * 1.2
    save_file(tensors, path)
    write_json(about, {**read_json(about), "sha256": file_digest(path)})

    verify_store(folder)
    with pytest.raises(GuidedCDError, match=rf"shard-00000.*differs from the teacher.*{key} differs by 0\.1"):
        verify_store(folder, samples=2)


def test_a_store_is_shown(toy, tmp_path, capsys):
    """`store show` tells teacher, energies, videos and what is missing, without the teacher."""
    folder = preprocess(make(), store_folder=tmp_path / "s", shard=(0, 2))
    capsys.readouterr()
    show_store(folder)
    shown = capsys.readouterr().out

    for text in ("toy", "(inversion)", "10 steps", "3 of 5", "2 of 3 shards", "missing   1"):
        assert text in shown
    with pytest.raises(GuidedCDError, match="is no latent store"):
        show_store(tmp_path)


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


def test_compiled_layers_see_few_sizes(toy):
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


def look(teacher, needs: tuple[str, ...], tail: str, recompute: str = "nothing"):
    """(what is seen of two samples, the gradient of a sum of records, numbers kept for it)."""
    z = noise(0, 0, (2, *teacher.geometry.latent_shape)).requires_grad_()
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        kept[x.data_ptr()] = x.numel()
        return x

    weights = {p.data_ptr() for p in teacher.network.parameters()}
    how = {"tail": tail, "recompute": recompute != "nothing"}
    network = teacher.network
    temporal, recorded = temporal_layers(network).values(), recorded_layers(network, needs)
    with recomputing(network, recompute, temporal=temporal, keep=recorded):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            seen = teacher.seen(z, torch.tensor([300, 800]), teacher.null(2), needs, **how)
            value = sum(maps.square().sum() for maps in seen.records[needs[0]].values())
        (gradient,) = torch.autograd.grad(value, z)
    return seen, gradient, sum(count for place, count in kept.items() if place not in weights)


def test_a_pass_may_end_at_its_last_record(toy):
    """With the tail "none" nothing after the last record runs, "detached" runs it without gradient; records agree."""
    teacher = make().teacher.build()
    ran = []
    teacher.network.mid_block.register_forward_hook(lambda *_: ran.append("middle"))
    teacher.network.conv_out.register_forward_hook(lambda *_: ran.append("end"))
    needs = ("temporal-attention:down_blocks",)
    found = {tail: look(teacher, needs, tail) for tail in ("whole", "detached", "none")}

    assert ran == ["middle", "end", "middle", "end"]
    assert (found["whole"][0].output.requires_grad, found["detached"][0].output.requires_grad) == (True, False)
    assert torch.equal(found["whole"][0].output, found["detached"][0].output)
    assert found["none"][0].output.numel() == 0
    assert found["detached"][2] < found["whole"][2]
    for tail in ("detached", "none"):
        assert torch.equal(found[tail][1], found["whole"][1])
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("fast", [False, True])
def test_recomputed_activations_are_not_kept(toy, fast):
    """Gradients are bit for bit the same, far less is kept for them, and the network is left as it was."""
    teacher = make().teacher.build()
    if fast:
        speed_up(teacher.network)
    needs = ("temporal-attention:official",)
    before = [module for module in teacher.network.modules() if "forward" in vars(module)]
    plain, cheap, most = (look(teacher, needs, "detached", what) for what in ("nothing", "cheap", "most"))

    assert [module for module in teacher.network.modules() if "forward" in vars(module)] == before
    for seen, gradient, _ in (cheap, most):
        assert torch.equal(gradient, plain[1])
        assert torch.equal(seen.output, plain[0].output)
    assert cheap[2] < 0.5 * plain[2] and most[2] < 0.3 * plain[2]
    with pytest.raises(ValueError, match="recompute must be one of"):
        look(teacher, needs, "whole", "some")


def test_work_ahead_keeps_order_and_errors():
    """Results come in order, one is made while another is used, and an error comes when it is its turn."""
    begun = {x: threading.Event() for x in range(1, 5)}

    def double(x: int) -> int:
        begun[x].set()
        if x == 3:
            raise KeyError(x)
        return 2 * x

    found = []
    with pytest.raises(KeyError):
        for value in prefetched(double, [1, 2, 3, 4]):
            found.append(value)
            assert begun[value // 2 + 1].wait(timeout=60)
    assert found == [2, 4]
    assert list(prefetched(double, [])) == []


SCRIPT = """
import json, sys
sys.path[:0] = json.loads(sys.argv[3])
import torch
torch.set_num_threads(1)
from pathlib import Path
from guidedcd.documents import read_json
from guidedcd.preprocessing.preprocess import preprocess
from guidedcd.config.resolve import run_from_dict
from guidedcd.config.run import Run
preprocess(run_from_dict(read_json(Path(sys.argv[1]))), store_folder=Path(sys.argv[2]))
"""


def launch(run: Run, folder: Path) -> subprocess.Popen:
    """Preprocess in a process of its own."""
    script, config = folder.parent / "script.py", folder.parent / "run.json"
    script.write_text(SCRIPT)
    write_json(config, run.to_dict())
    paths = [str(TESTS / "fakes"), *(p for p in sys.path if "site-packages" in p and "tmp" in p)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS.parent), *paths])}
    command = [sys.executable, str(script), str(config), str(folder), json.dumps(paths)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_killed_at_random_it_ends_the_same(toy, tmp_path):
    """SIGKILL at up to five random points, then the same command: the store of an uninterrupted run, bitwise."""
    run = make(energy={"pta": {}}, preprocess={"videos": 24, "draws_per_video": 8, "shard_size": 1})
    whole = files(preprocess(run, store_folder=tmp_path / "whole"))
    folder, chance, kills = tmp_path / "s", random.Random(0), 0
    seen = 0
    while kills < 5:
        process = launch(run, folder)
        while len(list(folder.glob("shard-*"))) <= seen and process.poll() is None:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.15))
        if process.poll() is not None:  # a fast machine finished before the last kills
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills, seen = kills + 1, len(list(folder.glob("shard-*")))
    assert kills

    process = launch(run, folder)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert files(folder) == whole


def test_the_benchmark_runs_anywhere(tmp_path, monkeypatch, capsys):
    """`benchmarks/preprocessing.py --tiny` ends in seconds with all rows in its file and no error."""
    benchmarks = TESTS.parent / "benchmarks"
    monkeypatch.syspath_prepend(benchmarks)
    out = tmp_path / "figures.json"
    command = ["preprocessing.py", "--tiny", "--device", "cpu", "--fast", "layers", "--parts-only", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(benchmarks / "preprocessing.py"), run_name="__main__")

    rows = read_json(out)["runs"][0]["rows"]
    assert not [row for row in rows if "error" in row]
    assert {row["name"] for row in rows if "samples_per_hour" in row["values"]} == {
        "single-step reference, layers",
        "one draw per video, layers",
        "eight draws per video, layers",
    }
    assert "score and prediction, layers" in {row["name"] for row in rows}
    assert capsys.readouterr().out.count("official samples_per_hour=300") == 2


def test_the_benchmark_ends_in_order_when_its_time_is_over(tmp_path, monkeypatch):
    """Without time every row of every setting has an error, and a setting's shards come before the next setting."""
    benchmarks = TESTS.parent / "benchmarks"
    monkeypatch.syspath_prepend(benchmarks)
    out = tmp_path / "figures.json"
    command = [
        "preprocessing.py",
        "--tiny",
        "--device",
        "cpu",
        "--fast",
        "no,layers",
        "--budget",
        "0",
        "--out",
        str(out),
    ]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(benchmarks / "preprocessing.py"), run_name="__main__")

    rows = read_json(out)["runs"][0]["rows"]
    assert len(rows) == 12
    assert all(row["error"] == "TimeoutError: not measured: the budget of 0 s is spent" for row in rows)
    assert [row["name"].rpartition(", ")[2] for row in rows] == ["no"] * 6 + ["layers"] * 6
    assert [row["name"].startswith("whole shard") for row in rows] == [False, False, False, False, True, True] * 2
