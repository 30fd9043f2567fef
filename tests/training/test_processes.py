"""Training in two processes equals training in one."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from short_training import TWO_PROCESSES, launch, trained
from toy_plugin import make

from guidedcd import devices
from guidedcd.config.structure import changed
from guidedcd.errors import GuidedCDError
from guidedcd.training.distributed import accelerator_for


def test_every_process_has_its_gpu(monkeypatch):
    """Of several processes on one machine each takes the GPU of its own number; one alone takes the first."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    alone = devices.device("auto")
    monkeypatch.setenv("WORLD_SIZE", "2")

    assert (str(alone), str(devices.device("auto"))) == ("cuda", "cuda:1")


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"LOCAL_RANK": "abc"}, "LOCAL_RANK must be a whole number"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is missing"),
    ],
)
def test_variables_of_a_broken_launch_are_an_error(toy, monkeypatch, variables, words):
    """They are one sentence, before anything is computed, not an error of a library."""
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(GuidedCDError, match=words):
        devices.process()
        accelerator_for(make(), torch.device("cpu"))


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
    for line, expected in zip(lines, straight, strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-4, abs=1e-6)
        assert line["reward/toy"] == pytest.approx(expected["reward/toy"], rel=1e-4)
    one_, other = (load_file(tmp_path / x / "student" / "model.safetensors") for x in "ab")
    fresh = one.teacher.build().network.state_dict()
    moved = sum((one_[k] - v).square().sum() for k, v in fresh.items()).sqrt()
    apart = sum((one_[k] - other[k]).square().sum() for k in fresh).sqrt()
    # Adam turns the rounding of near-zero gradients into whole steps of single weights: compare as a whole.
    assert apart < 0.01 * moved


@pytest.mark.slow
def test_a_sharded_network_never_has_old_weights(toy, tmp_path):
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


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_resume(toy, tmp_path, parallel):
    """Two processes continue from their checkpoint to the same numbers, and so does one with twice the batch."""
    options = {"steps": 4, "average": 0.5, "parallel": {"mode": parallel}}
    run, folder = make(train=options), tmp_path / "a"
    logs = []
    for _ in range(2):
        process = launch(run, folder, tmp_path / "s", TWO_PROCESSES)
        output, _ = process.communicate()
        assert process.returncode == 0, output
        logs.append([json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()])
        shutil.rmtree(folder / "student")
    assert "continuing after step 2" in output
    assert logs[0] == logs[1]

    alone = trained(make(train={**options, "batch_size": 4}), folder, tmp_path / "other")
    assert [line["loss"] for line in alone[2:]] == pytest.approx(logs[0][2:], rel=1e-3)
