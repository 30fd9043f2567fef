"""Preprocessing and training end to end on a toy teacher: exact resume, routing, bad numbers, several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import attrs
import pytest
import torch
from safetensors.torch import load_file
from toy import CONFIG, PLUGIN

from guidedcd import checkpoint
from guidedcd.errors import GuidedCDError
from guidedcd.files import read_json, write_json
from guidedcd.preprocess import run_preprocess
from guidedcd.run import Run
from guidedcd.store import LatentStore, shard_name
from guidedcd.train import Trainer, run_training

HERE = Path(__file__).parent


@pytest.fixture
def toy(install, monkeypatch, tmp_path):
    """The toy plugin, installed; the test runs in its own folder."""
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.chdir(tmp_path)
    install("toy-plugin", PLUGIN)


def make(**changes) -> Run:
    """The toy run with changed sections."""
    described = json.loads(json.dumps(CONFIG))
    for key, value in changes.items():
        described[key] = {**described.get(key, {}), **value} if isinstance(value, dict) else value
    return Run.from_dict(described)


def trained(run: Run, folder: Path, store: Path) -> list[dict]:
    """Train in `folder`; the log without its clock."""
    folder.mkdir(exist_ok=True)
    Trainer(run, folder, LatentStore(run_preprocess(run, store_folder=store)), run.teacher.build()).fit()
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "samples_per_second", "memory_gb")} for line in lines
    ]


@pytest.fixture
def unmeasured(monkeypatch):
    """Training without evaluation and report, which tests of their own have."""

    def report(folder: Path) -> Path:
        (folder / "report.html").write_text("done")
        return folder / "report.html"

    monkeypatch.setattr("guidedcd.evaluate.run_evaluate", lambda folder: None)
    monkeypatch.setattr("guidedcd.report.write_report", report)


def test_a_run_keeps_the_command_that_made_it(toy, unmeasured, tmp_path):
    """run.json has the command line of the first call; another command line continues the same run."""
    run = make()
    folder = run_training(run, command="guidedcd train --name 'a b'")
    (folder / "report.html").unlink()

    assert read_json(folder / "run.json")["command"] == "guidedcd train --name 'a b'"
    assert run_training(run, command="guidedcd train") == folder
    assert read_json(folder / "run.json") == {"command": "guidedcd train --name 'a b'", **run.to_dict()}
    assert "command" not in read_json(run_training(run, new=True) / "run.json")


def test_store_is_the_same_however_it_was_interrupted(toy, tmp_path, monkeypatch):
    """A store whose preprocessing stopped after every shard equals one that was made in one go, byte for byte."""
    from guidedcd import store as module

    run = make()
    whole = run_preprocess(run, store_folder=tmp_path / "whole")
    save, parts = module.save_shard, tmp_path / "parts"

    def save_and_stop(*args):
        save(*args)
        raise KeyboardInterrupt

    for _ in range(3):
        monkeypatch.setattr(module, "save_shard", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            run_preprocess(run, store_folder=parts)
    monkeypatch.setattr(module, "save_shard", save)
    run_preprocess(run, store_folder=parts)

    for number in range(3):
        name = f"{shard_name(number)}.safetensors"
        assert (whole / name).read_bytes() == (parts / name).read_bytes()


def test_draws_hold_what_the_teacher_says(toy, tmp_path):
    """A stored draw's predictions and score are the teacher's at the recomputed noisy latents."""
    run = make()
    store = LatentStore(run_preprocess(run, store_folder=tmp_path / "s"))
    teacher = run.teacher.build()
    grid = teacher.schedule.grid(10)

    for place in (0, 4, 14):
        draw = store[place]
        t = grid[draw.index][None]
        z = teacher.schedule.add_noise(draw.z0[None], draw.noise[None], t)
        with torch.no_grad():
            cond = teacher.net(z, t, teacher.embed([draw.sample.caption]))[0]
            uncond = teacher.net(z, t, teacher.null(1))[0]
        torch.testing.assert_close(draw.cond_output, cond, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(draw.uncond_output, uncond, atol=1e-5, rtol=1e-4)
        assert ("toy" in draw.scores) == (draw.index >= 5)


def test_indices_cover_the_grid(toy, tmp_path):
    """The draws of a video are stratified: one in every equal part of the grid."""
    run = make(preprocess={"draws_per_video": 5})
    store = LatentStore(run_preprocess(run, store_folder=tmp_path / "s"))

    for video in range(5):
        assert [store[video * 5 + d].index // 2 for d in range(5)] == [0, 1, 2, 3, 4]


def test_resumed_run_equals_an_uninterrupted_one(toy, tmp_path, monkeypatch):
    """Training stopped at any step and continued gives the same log and the same weights, bit for bit."""
    run, store = make(), tmp_path / "s"
    straight = trained(run, tmp_path / "a", store)
    step = Trainer._step

    def stop_at(number):
        def stopping(self, model, now):
            if now == number:
                raise KeyboardInterrupt
            return step(self, model, now)

        return stopping

    for number in (2, 4, 5):
        monkeypatch.setattr(Trainer, "_step", stop_at(number))
        with pytest.raises(KeyboardInterrupt):
            trained(run, tmp_path / "b", store)
    monkeypatch.setattr(Trainer, "_step", step)
    resumed = trained(run, tmp_path / "b", store)

    assert straight == resumed
    one, other = (load_file(tmp_path / x / "student" / "model.safetensors") for x in "ab")
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_training_moves_the_student_and_is_logged(toy, tmp_path):
    """Every logged step has losses, gradient norm and reward shares, and the student's weights change."""
    run = make()
    lines = trained(run, tmp_path / "a", tmp_path / "s")

    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(line["grad_norm"] > 0 and line["cd_loss"] > 0 for line in lines)
    assert all(line["routed/toy"] == 1 for line in lines)
    fresh = run.teacher.build().network.state_dict()
    weights = load_file(tmp_path / "a" / "student" / "model.safetensors")
    assert any(not torch.equal(weights[k], v) for k, v in fresh.items())


def test_lora_and_average_resume(toy, tmp_path, monkeypatch):
    """Adapters and an averaged target network survive an interruption, too."""
    run, store = make(student={"kind": "lora", "rank": 2, "ema": 0.9}), tmp_path / "s"
    straight = trained(run, tmp_path / "a", store)
    step = Trainer._step
    monkeypatch.setattr(
        Trainer,
        "_step",
        lambda self, model, now: step(self, model, now) if now < 4 else (_ for _ in ()).throw(KeyError),
    )
    with pytest.raises(KeyError):
        trained(run, tmp_path / "b", store)
    monkeypatch.setattr(Trainer, "_step", step)

    assert trained(run, tmp_path / "b", store) == straight


def test_foreign_store_is_refused(toy, tmp_path):
    """A store of another grid is refused with what differs; nothing in it changes."""
    folder = run_preprocess(make(), store_folder=tmp_path / "s")
    before = sorted((p.name, p.stat().st_mtime_ns) for p in folder.iterdir())

    with pytest.raises(GuidedCDError, match="belongs to another run: steps differ"):
        run_preprocess(make(solver={"steps": 20}), store_folder=folder)

    assert sorted((p.name, p.stat().st_mtime_ns) for p in folder.iterdir()) == before


def test_damaged_shard_is_named_and_mended(toy, tmp_path):
    """A truncated shard is named with what to do, and doing it mends the store."""
    run = make()
    folder = run_preprocess(run, store_folder=tmp_path / "s")
    path = folder / f"{shard_name(1)}.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])

    with pytest.raises(GuidedCDError, match=r"shard-00001\.safetensors is damaged"):
        LatentStore(folder)[7]
    with pytest.raises(GuidedCDError, match=r"shard-00001\.safetensors is damaged"):
        LatentStore(folder).verify()

    (folder / f"{shard_name(1)}.json").unlink()
    run_preprocess(run, store_folder=folder)
    assert path.read_bytes() == whole


def test_unreadable_clips_are_listed_or_stop_the_run(toy, tmp_path):
    """Broken clips are listed with their reason; more than the allowed share stops the run, every time."""
    run = make(data=[{"toy": {"broken": 3}}], preprocess={"max_skipped": 0.5})
    store = LatentStore(run_preprocess(run, store_folder=tmp_path / "s"))
    assert store.skipped == [{"id": "toy/2", "reason": "the file holds no video stream"}]
    assert len(store) == 4 * 3

    strict = attrs.evolve(run, preprocess=attrs.evolve(run.preprocess, max_skipped=0.1))
    for _ in range(2):
        with pytest.raises(GuidedCDError, match=r"1 of 5 clips could not be used \(the first, toy/2"):
            run_preprocess(strict, store_folder=tmp_path / "s")


def test_infinite_loss_names_step_samples_and_checkpoint(toy, tmp_path, monkeypatch):
    """A loss that is not finite stops with the step, the sample ids and the last good checkpoint."""
    run, losses = make(), Trainer.losses

    def spoiled(self, model, batch, number):
        loss, numbers = losses(self, model, batch, number)
        return (loss * float("nan") if number == 3 else loss), numbers

    monkeypatch.setattr(Trainer, "losses", spoiled)
    with pytest.raises(GuidedCDError, match=r"not finite at step 4, samples toy/\d#\d, toy/\d#\d.*step-000002"):
        trained(run, tmp_path / "a", tmp_path / "s")
    assert [path.name for path in checkpoint.found(tmp_path / "a" / "checkpoints")] == ["step-000002"]


def test_out_of_memory_names_the_component(toy, tmp_path, monkeypatch):
    """Running out of memory names the component and the settings that need less."""
    run = make()
    store = run_preprocess(run, store_folder=tmp_path / "s")

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("guidedcd.train.consistency", full)
    with pytest.raises(GuidedCDError, match=r"out of memory in the student's forward pass.*--train.batch-size 1"):
        Trainer(run, tmp_path, LatentStore(store), run.teacher.build()).fit()


SCRIPT = """
import json, sys
sys.path[:0] = json.loads(sys.argv[4])
import torch
torch.set_num_threads(1)
from pathlib import Path
from guidedcd.run import Run
from guidedcd.files import read_json
from guidedcd.preprocess import run_preprocess
from guidedcd.store import LatentStore
from guidedcd.train import Trainer, run_training
run = Run.from_dict(read_json(Path(sys.argv[1])))
folder = Path(sys.argv[2]); folder.mkdir(exist_ok=True)
teacher = run.teacher.build()
Trainer(run, folder, LatentStore(run_preprocess(run, store_folder=Path(sys.argv[3]), teacher=teacher)), teacher).fit()
"""


def launch(run: Run, folder: Path, store: Path, prefix: tuple[str, ...] = ()) -> subprocess.Popen:
    """Train in a process of its own."""
    script = folder.parent / "script.py"
    script.write_text(SCRIPT)
    config = folder.parent / f"{folder.name}.json"
    write_json(config, run.to_dict())
    paths = [str(HERE), *(p for p in sys.path if "site-packages" in p and "tmp" in p)]
    command = [sys.executable, *prefix, str(script), str(config), str(folder), str(store), json.dumps(paths)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE.parent), *paths])}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_killed_run_continues_to_the_same_numbers(toy, tmp_path):
    """SIGKILL in preprocessing and in training, then the same command: same log, same weights."""
    run = make(train={"steps": 60, "save_every": 10})
    straight = trained(run, tmp_path / "a", tmp_path / "s")
    folder, store = tmp_path / "b", tmp_path / "t"
    for seen in (store / f"{shard_name(0)}.json", folder / "checkpoints" / "step-000020"):
        process = launch(run, folder, store)
        while not seen.exists() and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (folder / "student").exists()

    process = launch(run, folder, store)
    output, _ = process.communicate()

    assert process.returncode == 0, output
    assert "continuing after step" in output
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [line["loss"] for line in straight]
    one, other = (load_file(tmp_path / x / "student" / "model.safetensors") for x in "ab")
    assert all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_batch(toy, tmp_path):
    """Two gloo processes with half the batch each give the losses and weights of one process with all of it."""
    store = tmp_path / "s"
    one = make(train={"batch_size": 4, "steps": 4})
    straight = trained(one, tmp_path / "a", tmp_path / "other")
    two = attrs.evolve(one, train=attrs.evolve(one.train, batch_size=2))
    prefix = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29571")

    process = launch(two, tmp_path / "b", store, prefix)
    output, _ = process.communicate()

    assert process.returncode == 0, output
    lines = [json.loads(line) for line in (tmp_path / "b" / "log.jsonl").read_text().splitlines()]
    for line, wanted in zip(lines, straight, strict=True):
        assert line["loss"] == pytest.approx(wanted["loss"], rel=1e-4, abs=1e-6)
        assert line["reward/toy"] == pytest.approx(wanted["reward/toy"], rel=1e-4)
    one_, other = (load_file(tmp_path / x / "student" / "model.safetensors") for x in "ab")
    fresh = one.teacher.build().network.state_dict()
    moved = sum((one_[k] - v).square().sum() for k, v in fresh.items()).sqrt()
    apart = sum((one_[k] - other[k]).square().sum() for k in fresh).sqrt()
    # Adam turns the rounding of near-zero gradients into whole steps of single weights: compare as a whole.
    assert apart < 0.01 * moved


def test_run_json_reads_back(toy, tmp_path):
    """What a run writes about itself is the run."""
    run = make()
    write_json(tmp_path / "run.json", run.to_dict())

    assert Run.from_dict(read_json(tmp_path / "run.json")) == run
