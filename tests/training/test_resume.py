"""A run that was interrupted and continued equals an uninterrupted one."""

from __future__ import annotations

import json
import signal
import time

import pytest
import torch
from safetensors.torch import load_file
from short_training import interrupted, launch, trained
from toy_plugin import make

from guidedcd.preprocessing.shards import shard_name
from guidedcd.training.log import Log


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


@pytest.mark.slow
def test_lora_and_average_resume(toy, tmp_path, monkeypatch):
    """Adapters and an averaged target network survive an interruption, too."""
    run, store = make(student={"kind": "lora", "rank": 2, "ema": 0.9}), tmp_path / "s"
    straight = trained(run, tmp_path / "a", store)
    with interrupted(monkeypatch, 4):
        trained(run, tmp_path / "b", store)

    assert trained(run, tmp_path / "b", store) == straight


@pytest.mark.slow
def test_bfloat16_training_agrees_with_float32_and_resumes_exactly(toy, tmp_path, monkeypatch):
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


def test_files_of_a_killed_run_are_removed(toy, tmp_path):
    """Half-written checkpoints and files of a killed process do not stay beside the complete ones."""
    left = tmp_path / "a" / "checkpoints" / ".step-000002.1.part"
    left.mkdir(parents=True)
    (tmp_path / "a" / ".log.jsonl.1.part").touch()
    trained(make(), tmp_path / "a", tmp_path / "s")

    assert not [*(tmp_path / "a").rglob(".*.part")]


def test_the_log_goes_on_where_it_was(tmp_path):
    """A resumed run drops the lines it writes again and odd ones, adds to the time taken, and keeps JSON valid."""
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "seconds": 2.5}\nodd\n3\n{"step": 2, "seconds": 4.0}\n{"step": 3, "seco')
    log = Log(path, resumed_at=1)
    log.write({"step": 2, "loss": float("nan")})

    assert log.seconds == 2.5
    assert path.read_text() == '{"step": 1, "seconds": 2.5}\n{"step": 2}\n'


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
    assert [{k: v for k, v in x.items() if not k.startswith(clock)} for x in one] == [
        {k: v for k, v in x.items() if not k.startswith(clock)} for x in other
    ]
