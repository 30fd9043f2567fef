"""Preprocessing and training end to end on a toy teacher: exact resume, routing, bad numbers, several processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import attrs
import pytest
import torch
from safetensors.torch import load_file
from short_training import TWO_PROCESSES, interrupted, launch, trained
from toy_plugin import make

from guidedcd import devices
from guidedcd.config.resolve import run_from_dict
from guidedcd.config.structure import changed
from guidedcd.console import console
from guidedcd.data.routing import Sample
from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError
from guidedcd.files import file_digest, write_json
from guidedcd.preprocessing.preprocess import preprocess
from guidedcd.preprocessing.shards import shard_name
from guidedcd.preprocessing.store import LatentStore
from guidedcd.training import checkpoint, run_folder
from guidedcd.training.batches import Batches
from guidedcd.training.log import Log
from guidedcd.training.step import TrainStep
from guidedcd.training.trainer import Trainer
from guidedcd.workflow import distil


@pytest.fixture
def unmeasured(monkeypatch):
    """Training without evaluation and report, which tests of their own have."""

    def report(folder: Path) -> Path:
        (folder / "report.html").write_text("done")
        return folder / "report.html"

    monkeypatch.setattr(
        "guidedcd.evaluation.evaluate.evaluate", lambda folder: (folder / "evaluation.json").write_text("{}")
    )
    monkeypatch.setattr("guidedcd.evaluation.report.page.write_report", report)


def test_a_run_keeps_the_command_that_made_it(toy, unmeasured, tmp_path):
    """run.json has the command line of the first call; another command line continues the same run."""
    run = make()
    folder = distil(run, command="guidedcd train --name 'a b'")
    (folder / "report.html").unlink()

    assert read_json(folder / "run.json")["command"] == "guidedcd train --name 'a b'"
    assert distil(run, command="guidedcd train") == folder
    assert read_json(folder / "run.json") == {"command": "guidedcd train --name 'a b'", **run.to_dict()}
    assert "command" not in read_json(distil(run, new=True) / "run.json")


def test_store_is_the_same_however_it_was_interrupted(toy, tmp_path, monkeypatch):
    """A store whose preprocessing stopped after every shard equals one that was made in one go, byte for byte."""
    from guidedcd.preprocessing import store as module

    run = make()
    whole = preprocess(run, store_folder=tmp_path / "whole")
    save, parts = module.save_shard, tmp_path / "parts"

    def save_and_stop(*args):
        save(*args)
        raise KeyboardInterrupt

    for _ in range(3):
        monkeypatch.setattr(module, "save_shard", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            preprocess(run, store_folder=parts)
    monkeypatch.setattr(module, "save_shard", save)
    preprocess(run, store_folder=parts)

    for number in range(3):
        name = f"{shard_name(number)}.safetensors"
        assert (whole / name).read_bytes() == (parts / name).read_bytes()


def test_draws_hold_what_the_teacher_says(toy, tmp_path):
    """A stored draw's predictions and score are the teacher's at the recomputed noisy latents."""
    run = make()
    store = LatentStore(preprocess(run, store_folder=tmp_path / "s"))
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
    store = LatentStore(preprocess(run, store_folder=tmp_path / "s"))

    for video in range(5):
        assert [store[video * 5 + d].index // 2 for d in range(5)] == [0, 1, 2, 3, 4]


def test_resumed_run_equals_an_uninterrupted_one(toy, tmp_path, monkeypatch):
    """Training stopped at any step and continued gives the same log and the same weights, bit for bit."""
    run, store = make(), tmp_path / "s"
    straight = trained(run, tmp_path / "a", store)
    for number in (2, 4, 5):
        with interrupted(monkeypatch, number):
            trained(run, tmp_path / "b", store)
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
    with interrupted(monkeypatch, 4):
        trained(run, tmp_path / "b", store)

    assert trained(run, tmp_path / "b", store) == straight


def test_foreign_store_is_refused(toy, tmp_path):
    """A store of another grid is refused with what differs; nothing in it changes."""
    folder = preprocess(make(), store_folder=tmp_path / "s")
    before = sorted((p.name, p.stat().st_mtime_ns) for p in folder.iterdir())

    with pytest.raises(GuidedCDError, match=r"belongs to another run \(steps: 10 there, 20 here\)"):
        preprocess(make(solver={"steps": 20}), store_folder=folder)

    assert sorted((p.name, p.stat().st_mtime_ns) for p in folder.iterdir()) == before


def test_damaged_shard_is_named_and_mended(toy, tmp_path):
    """A truncated shard is named with what to do, and doing it mends the store."""
    run = make()
    folder = preprocess(run, store_folder=tmp_path / "s")
    path = folder / f"{shard_name(1)}.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])

    for ask in (lambda: LatentStore(folder), lambda: preprocess(run, store_folder=folder)):
        with pytest.raises(GuidedCDError, match=r"shard-00001\.safetensors is damaged"):
            ask()
    path.write_bytes(whole[:-1] + b"?")
    with pytest.raises(GuidedCDError, match=r"shard-00001\.safetensors is damaged \(its checksum differs"):
        LatentStore(folder).verify()
    (folder / f"{shard_name(2)}.json").write_text("{")
    with pytest.raises(GuidedCDError, match=r"shard-00002\.safetensors is damaged .*Delete shard-00002\.json"):
        LatentStore(folder)

    (folder / f"{shard_name(2)}.json").unlink()
    (folder / f"{shard_name(1)}.json").unlink()
    preprocess(run, store_folder=folder)
    assert path.read_bytes() == whole


def test_unreadable_clips_are_listed_or_stop_the_run(toy, tmp_path):
    """Broken clips are listed with their reason; more than the allowed share stops the run, every time."""
    run = make(data=[{"toy": {"broken": 3}}], preprocess={"max_skipped": 0.5})
    store = LatentStore(preprocess(run, store_folder=tmp_path / "s"))
    assert store.skipped == [{"id": "toy/2", "reason": "the file holds no video stream"}]
    assert len(store) == 4 * 3

    strict = attrs.evolve(run, preprocess=attrs.evolve(run.preprocess, max_skipped=0.1))
    for _ in range(2):
        with pytest.raises(GuidedCDError, match=r"1 of 5 clips could not be used \(the first, toy/2"):
            preprocess(strict, store_folder=tmp_path / "s")


def test_infinite_loss_names_step_samples_and_checkpoint(toy, tmp_path, monkeypatch):
    """A loss that is not finite stops with the step, the sample ids and the last good checkpoint."""
    run, losses = make(), TrainStep.losses

    def spoiled(self, model, batch, number):
        loss, numbers = losses(self, model, batch, number)
        return (loss * float("nan") if number == 3 else loss), numbers

    monkeypatch.setattr(TrainStep, "losses", spoiled)
    with pytest.raises(GuidedCDError, match=r"not finite at step 4, samples toy/\d#\d, toy/\d#\d.*step-000002"):
        trained(run, tmp_path / "a", tmp_path / "s")
    assert [path.name for path in checkpoint.paths(tmp_path / "a" / "checkpoints")] == ["step-000002"]


def late(monkeypatch) -> None:
    """Steps are told while the next one is under way, as on a GPU."""
    told = Trainer.__init__

    def __init__(self, *args, **kwargs):
        told(self, *args, **kwargs)
        self.waits = False

    monkeypatch.setattr(Trainer, "__init__", __init__)


def test_steps_that_are_told_late_are_the_same(toy, tmp_path, monkeypatch):
    """Log, checkpoints, and a run that was interrupted and continued, do not depend on when steps are told."""
    run, store = make(), tmp_path / "s"
    straight = trained(run, tmp_path / "a", store)
    late(monkeypatch)

    assert trained(run, tmp_path / "b", store) == straight
    with interrupted(monkeypatch, 4):
        trained(run, tmp_path / "c", store)
    assert checkpoint.paths(tmp_path / "c" / "checkpoints")[-1].name == "step-000002"
    assert trained(run, tmp_path / "c", store) == straight


@pytest.mark.parametrize("fails", [False, True])
def test_a_late_step_that_is_not_finite_is_told_before_anything_is_made_of_it(toy, tmp_path, monkeypatch, fails):
    """It is named, and not the step after it, also where that one fails for it; it gets into no checkpoint."""
    run, losses = make(train={"checkpoint": {"every": 4}}), TrainStep.losses

    def spoiled(self, model, batch, number):
        if fails and number == 3:
            raise RuntimeError("for what the step before did")
        loss, numbers = losses(self, model, batch, number)
        spoil = number == (2 if fails else 3)
        return (loss * float("nan") if spoil else loss), numbers | ({"loss": loss * float("nan")} if spoil else {})

    monkeypatch.setattr(TrainStep, "losses", spoiled)
    late(monkeypatch)
    with pytest.raises(GuidedCDError, match=f"not finite at step {3 if fails else 4}, samples toy"):
        trained(run, tmp_path / "a", tmp_path / "s")
    assert not checkpoint.paths(tmp_path / "a" / "checkpoints")


def test_out_of_memory_names_the_component(toy, tmp_path, monkeypatch):
    """Running out of memory names the component and the settings that need less."""
    run = make()
    store = preprocess(run, store_folder=tmp_path / "s")

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("guidedcd.training.losses.distance", full)
    with pytest.raises(GuidedCDError, match=r"out of memory in the student's forward pass.*--train.batch-size 1"):
        Trainer(run, tmp_path, LatentStore(store), run.teacher.build()).fit()


def test_runs_that_start_together_do_not_share_a_folder(toy, tmp_path, monkeypatch):
    """A run that saw a name free that another run took meanwhile takes another name, also if that one is finished."""
    one, other = make(), make(seed=1)
    real = run_folder.run_folder

    def late(run, out, *, new, seen=[]):  # noqa: B006 - remembers that it was asked
        seen.append(run)
        return first if len(seen) == 1 else real(run, out, new=new)

    with run_folder.claimed(one, None, new=False, command="a") as first:
        monkeypatch.setattr(run_folder, "run_folder", late)
        with run_folder.claimed(other, None, new=False) as second:
            assert (first.name, second.name) == (first.name, f"{first.name}-2")
        monkeypatch.setattr(run_folder, "run_folder", real)
        with (
            pytest.raises(GuidedCDError, match="being written by another process"),
            run_folder.claimed(one, None, new=False),
        ):
            pass
        with run_folder.claimed(one, None, new=True) as third:
            assert third.name == f"{first.name}-3"
    for name in run_folder.RESULTS:
        (first / name).parent.mkdir(exist_ok=True)
        (first / name).touch()
    monkeypatch.setattr(run_folder, "run_folder", lambda *args, seen=[], **how: late(*args, seen=seen, **how))
    with run_folder.claimed(make(seed=2), None, new=False) as fourth:
        assert fourth.name == f"{first.name}-4"
    assert [read_json(folder / "run.json")["seed"] for folder in (first, second, fourth)] == [0, 1, 2]


def test_a_report_does_not_finish_a_run(toy, unmeasured, tmp_path):
    """A run whose report was written before its time is continued; one with all its results is not."""
    run = make()
    with run_folder.claimed(run, None, new=False) as folder:
        (folder / "report.html").touch()

    assert distil(run) == folder
    assert distil(run) != folder


def test_a_damaged_run_is_no_concern_of_others(toy, tmp_path):
    """A run.json that cannot be read stops no other run, and does not count as one to continue."""
    for number, text in enumerate(("{", "[1]")):
        (tmp_path / "runs" / str(number)).mkdir(parents=True)
        (tmp_path / "runs" / str(number) / "run.json").write_text(text)

    with run_folder.claimed(make(), None, new=False) as folder:
        assert folder.name.endswith("-shapes")


def test_a_folder_that_cannot_be_written_is_told_first(toy, tmp_path):
    """--out below a file is refused before anything is computed, in one sentence."""
    (tmp_path / "file").touch()

    with pytest.raises(GuidedCDError, match="a file is in the way"):
        distil(make(), out=tmp_path / "file" / "run")
    assert not (tmp_path / "runs").exists()


def test_a_missing_part_is_told_before_the_work(toy, tmp_path, monkeypatch):
    """A reward whose file is missing stops the run before its latents are computed, and nothing is written."""

    def missing(self, config):
        raise GuidedCDError("hps: there is no file")

    monkeypatch.setattr("toy_plugin.Reward.__init__", missing)
    with pytest.raises(GuidedCDError, match="there is no file"):
        distil(make())
    assert not (tmp_path / "runs").exists()


def test_the_log_goes_on_where_it_was(tmp_path):
    """A resumed run drops the lines it writes again and odd ones, adds to the time taken, and keeps JSON valid."""
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "seconds": 2.5}\nodd\n3\n{"step": 2, "seconds": 4.0}\n{"step": 3, "seco')
    log = Log(path, resumed_at=1)
    log.write({"step": 2, "loss": float("nan")})

    assert log.seconds == 2.5
    assert path.read_text() == '{"step": 1, "seconds": 2.5}\n{"step": 2}\n'


def test_a_reward_is_logged_as_its_mean(toy, tmp_path, monkeypatch):
    """With several batches a step, a reward that scored no sample in one of them has its mean over the others."""
    losses = TrainStep.losses

    def sparse(self, model, batch, number):
        loss, _ = losses(self, model, batch, number)
        return loss, {"cd_loss": float(number % 2), "loss": 1.0} | ({"reward/toy": 3.0} if number % 2 else {})

    monkeypatch.setattr(TrainStep, "losses", sparse)
    line = trained(make(train={"steps": 1, "accumulate": 2}), tmp_path / "a", tmp_path / "s")[0]

    assert (line["reward/toy"], line["cd_loss"]) == (3.0, 0.5)


@pytest.mark.parametrize("last", [False, True])
def test_ctrl_c_keeps_what_is_done(toy, tmp_path, monkeypatch, last):
    """The first Ctrl-C ends the step, saves and stops: a checkpoint, or after the last step the student."""
    begin = TrainStep.begin

    def signalled(self, number):
        if number == (6 if last else 3):
            os.kill(os.getpid(), signal.SIGINT)
        return begin(self, number)

    monkeypatch.setattr(TrainStep, "begin", signalled)
    with pytest.raises(KeyboardInterrupt):
        trained(make(), tmp_path / "a", tmp_path / "s")

    assert (tmp_path / "a" / "student" / "student.json").exists() is last
    assert checkpoint.paths(tmp_path / "a" / "checkpoints")[-1].name == ("step-000004" if last else "step-000003")


def test_what_a_killed_run_left_is_removed(toy, tmp_path):
    """Half-written checkpoints and files of a killed process do not stay beside the whole ones."""
    left = tmp_path / "a" / "checkpoints" / ".step-000002.1.part"
    left.mkdir(parents=True)
    (tmp_path / "a" / ".log.jsonl.1.part").touch()
    trained(make(), tmp_path / "a", tmp_path / "s")

    assert not [*(tmp_path / "a").rglob(".*.part")]


def test_checkpoints_are_ordered_by_step(tmp_path):
    """A million steps come after 999,999; other folders do not count."""
    for name in ("step-1000000", "step-999999", "step-x", "step-\u00b2", ".step-000001.1.part"):
        (tmp_path / name).mkdir()

    assert [path.name for path in checkpoint.paths(tmp_path)] == ["step-999999", "step-1000000"]


def test_a_damaged_checkpoint_is_named_and_can_be_left_out(toy, tmp_path, monkeypatch):
    """The message names the checkpoint; without it the run continues from the one before, to the same result."""
    run, store = make(), tmp_path / "s"
    straight = trained(run, tmp_path / "a", store)
    monkeypatch.setattr(Trainer, "write_student", lambda self, target: None)
    trained(run, tmp_path / "b", store)
    newest = checkpoint.paths(tmp_path / "b" / "checkpoints")[-1]
    for name in ("state.pt", "model.safetensors"):
        whole = (newest / name).read_bytes()
        (newest / name).write_bytes(whole[:100])
        with pytest.raises(GuidedCDError, match=r"checkpoint .*step-000004 is damaged.*Delete it"):
            trained(run, tmp_path / "b", store)
        (newest / name).write_bytes(whole)
    shutil.rmtree(newest)

    assert trained(run, tmp_path / "b", store) == straight


def damage_bit(folder: Path) -> None:
    """One bit of the weights flips."""
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_bit, "the checksum of model.safetensors differs"),
        (lambda folder: shutil.copy(folder / "model.safetensors", folder / "state.pt"), "checksum of state.pt differs"),
        (lambda folder: (folder / "state.pt").unlink(), "state.pt is missing"),
        (lambda folder: (folder / "checksums.json").unlink(), r"checksums.json is missing"),
        (lambda folder: (folder / "checksums.json").write_text("[1]"), "must hold an object"),
        (lambda folder: folder.rename(folder.with_name("step-000009")), "its files, which are of step 4"),
    ],
    ids=["bit", "foreign", "missing", "unsigned", "form", "renamed"],
)
def test_a_checkpoint_is_what_was_written(tmp_path, damage, words):
    """Files that changed, are gone or are another step's are found before the run continues from them."""
    folder = tmp_path / "step-000004"
    folder.mkdir()
    for name in ("model.safetensors", "state.pt"):
        (folder / name).write_text(name)
    sums = {path.name: file_digest(path) for path in folder.iterdir()}
    write_json(folder / "checksums.json", {"step": 4, "sha256": sums})
    checkpoint.verify(folder)

    damage(folder)
    with pytest.raises(GuidedCDError, match=rf"checkpoint .* is damaged \(.*{words}.*Delete it"):
        checkpoint.verify(checkpoint.paths(tmp_path)[0])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_checkpoint_without_permission_is_not_called_damaged(tmp_path):
    """Nothing advises to delete what may be sound."""
    folder = tmp_path / "step-000004"
    folder.mkdir()
    (folder / "checksums.json").touch(mode=0)
    with pytest.raises(GuidedCDError, match="no permission to read") as error:
        checkpoint.verify(folder)

    assert "Delete" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("shard-00001.json", lambda v: v.pop("samples"), r"shard-00001.*samples must be there"),
        ("shard-00001.json", lambda v: v["samples"].append(v["samples"][0]), "noise_seed has shape|z0 has shape"),
        ("shard-00001.json", lambda v: v["samples"][0].update(caption=3), r"samples\[0\]\.caption must be a text"),
        ("store.json", lambda v: v.update(shards=10**12), "10{12} shards of 2 videos cannot hold 5"),
        ("store.json", lambda v: v.update(shards="x"), "shards must be a whole number"),
        ("store.json", lambda v: v.pop("geometry"), "geometry must be there"),
    ],
)
def test_a_store_of_another_form_is_one_sentence(toy, tmp_path, name, change, words):
    """JSON without keys, with other types or numbers, or with more samples than tensors is named."""
    folder = preprocess(make(), store_folder=tmp_path / "s")
    value = read_json(folder / name)
    change(value)
    (folder / name).write_text(json.dumps(value))

    with pytest.raises(GuidedCDError, match=words):
        LatentStore(folder)


def test_half_precision_needs_a_gpu(toy, tmp_path):
    """fp16 without its loss scaler would train on zeros; the message says what to use."""
    with pytest.raises(GuidedCDError, match="needs an NVIDIA GPU. Use bf16"):
        distil(make(train={"precision": "fp16"}))


def test_mistakes_in_the_data_leave_nothing(toy, tmp_path):
    """A dataset that is too small is found out before a store is begun."""
    with pytest.raises(GuidedCDError, match="dataset 'toy' has 50 clips"):
        preprocess(make(preprocess={"videos": 60}), store_folder=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_no_usable_clip_is_an_error(toy, tmp_path):
    """However many clips may be skipped, none at all is too few."""
    run = make(data=[{"toy": {"broken": 1}}], preprocess={"max_skipped": 1.0})
    with pytest.raises(GuidedCDError, match="none of 5 clips could be used"):
        preprocess(run, store_folder=tmp_path / "s")


def test_processes_share_shards_by_number(toy, tmp_path, monkeypatch):
    """A process that comes later, when others have finished shards, takes none that belongs to another."""
    run = make()
    folder = preprocess(run, store_folder=tmp_path / "s")
    for number in (1, 2):
        (folder / f"{shard_name(number)}.json").unlink()

    def wait(seconds):
        raise TimeoutError

    monkeypatch.setattr("guidedcd.preprocessing.preprocess.process", lambda: (1, 2))
    monkeypatch.setattr("guidedcd.preprocessing.preprocess.time.sleep", wait)
    with pytest.raises(TimeoutError):
        preprocess(run, store_folder=folder)
    console.quiet = False

    assert [(folder / f"{shard_name(n)}.json").exists() for n in range(3)] == [True, True, False]


def test_every_process_has_its_gpu(monkeypatch):
    """Of several processes on one machine each takes the GPU of its own number; one alone takes the first."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    alone = devices.device("auto")
    monkeypatch.setenv("WORLD_SIZE", "2")

    assert (str(alone), str(devices.device("auto"))) == ("cuda", "cuda:1")


def test_clips_of_two_datasets_may_have_one_number(toy, tmp_path):
    """A route belongs to the clip and its caption, not to the number that a dataset gave it."""
    run = make()
    store = LatentStore(preprocess(run, store_folder=tmp_path / "s"))
    rule = {"readers": {}, "rules": [], "energies": run.energies, "size": 2, "omega": (1.0, 4.0), "seed": 0}
    batches = Batches(store, **rule)
    routes = [batches.routed(Sample(id="0", dataset=name, caption=name))[1] for name in ("one", "other", "one")]

    assert [found.caption for found in routes] == ["one", "other", "one"]


@pytest.mark.slow
def test_killed_run_continues_to_the_same_numbers(toy, tmp_path):
    """SIGKILL in preprocessing and in training, then the same command: same log, same weights."""
    run = make(train={"steps": 60, "checkpoint": {"every": 10}})
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
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_equal_one_with_twice_the_batch(toy, tmp_path, parallel):
    """Two gloo processes with half the clips and own videos each give losses and weights of one process with all."""
    store = tmp_path / "s"
    one = make(train={"batch_size": 4, "steps": 4, "average": 0.5, "rollouts": {"videos": 4, "steps": 2}})
    straight = trained(one, tmp_path / "a", tmp_path / "other")
    two = changed(one, train={"batch_size": 2, "rollouts": {"videos": 2}, "parallel": {"mode": parallel}})

    process = launch(two, tmp_path / "b", store, TWO_PROCESSES)
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


@pytest.mark.slow
def test_a_network_in_parts_is_never_out_of_date(toy, tmp_path):
    """Two FSDP processes in bfloat16, an averaged target, videos after every step: the losses of one process."""
    options = {"batch_size": 4, "steps": 4, "precision": "bf16", "validation": {"every": 1}, "optimizer": {"lr": 0.02}}
    one = make(train=options, student={"ema": 0.5})
    straight = trained(one, tmp_path / "a", tmp_path / "other")
    two = changed(one, train={"batch_size": 2, "parallel": {"mode": "fsdp"}})

    process = launch(two, tmp_path / "b", tmp_path / "s", TWO_PROCESSES)
    output, _ = process.communicate()

    assert process.returncode == 0, output
    lines = [json.loads(line) for line in (tmp_path / "b" / "log.jsonl").read_text().splitlines()]
    losses = [line["cd_loss"] for line in straight]
    assert [line["cd_loss"] for line in lines] == pytest.approx(losses, rel=0.05)
    assert max(losses) > 1.2 * min(losses)


def test_run_json_reads_back(toy, tmp_path):
    """What a run writes about itself is the run."""
    run = make()
    write_json(tmp_path / "run.json", run.to_dict())

    assert run_from_dict(read_json(tmp_path / "run.json")) == run
