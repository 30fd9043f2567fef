"""The training loop: log, errors, memory, Ctrl-C, trackers and validation videos."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from short_training import interrupted, trained
from toy_plugin import Reward, make

from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError
from guidedcd.evaluation.report.page import write_report
from guidedcd.preprocessing.preprocess import preprocess
from guidedcd.preprocessing.store import LatentStore
from guidedcd.training import checkpoint
from guidedcd.training.step import TrainStep
from guidedcd.training.trainer import Trainer
from guidedcd.workflow import distil


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


@pytest.mark.parametrize(
    ("options", "replayed"),
    [({}, 0), ({"fast": "graphs"}, 1), ({"fast": "graphs", "replay_rewards": False}, 0), ({"replay_rewards": True}, 1)],
)
def test_rewards_are_replayed_as_the_options_choose(toy, tmp_path, monkeypatch, options, replayed):
    """Rewards prepare CUDA graphs where passes are replayed, unless `replay_rewards` differs."""
    calls = []
    monkeypatch.setattr(Reward, "use_graphs", lambda self: calls.append(self), raising=False)
    trained(make(train={"steps": 1, **options}), tmp_path / "a", tmp_path / "s")

    assert len(calls) == replayed


def test_a_reward_is_logged_as_its_mean(toy, tmp_path, monkeypatch):
    """A reward without samples in one of a step's batches is averaged over the others."""
    losses = TrainStep.losses

    def sparse(self, model, batch, number):
        loss, _ = losses(self, model, batch, number)
        return loss, {"cd_loss": float(number % 2), "loss": 1.0} | ({"reward/toy": 3.0} if number % 2 else {})

    monkeypatch.setattr(TrainStep, "losses", sparse)
    line = trained(make(train={"steps": 1, "accumulate": 2}), tmp_path / "a", tmp_path / "s")[0]

    assert (line["reward/toy"], line["cd_loss"]) == (3.0, 0.5)


def test_the_learning_rate_warms_up_and_cools_down(toy, tmp_path):
    """It rises linearly over the first steps and falls linearly over the last ones."""
    run = make(
        train={"steps": 6, "log_every": 1, "optimizer": {"lr": 0.012}, "lr_schedule": {"warmup": 2, "cooldown": 3}}
    )
    lines = trained(run, tmp_path / "r", tmp_path / "s")

    assert [line["lr"] for line in lines] == pytest.approx([0.006, 0.012, 0.012, 0.012, 0.008, 0.004])


def log_late(monkeypatch) -> None:
    """Make a trainer log each step while the next one is under way, as on a GPU."""
    initialize = Trainer.__init__

    def __init__(self, *args, **kwargs):
        initialize(self, *args, **kwargs)
        self.waits = False

    monkeypatch.setattr(Trainer, "__init__", __init__)


@pytest.mark.slow
def test_steps_that_are_logged_late_are_the_same(toy, tmp_path, monkeypatch):
    """Log, checkpoints, and a run that was interrupted and continued, do not depend on when steps are logged."""
    run, store = make(), tmp_path / "s"
    straight = trained(run, tmp_path / "a", store)
    log_late(monkeypatch)

    assert trained(run, tmp_path / "b", store) == straight
    with interrupted(monkeypatch, 4):
        trained(run, tmp_path / "c", store)
    assert checkpoint.paths(tmp_path / "c" / "checkpoints")[-1].name == "step-000002"
    assert trained(run, tmp_path / "c", store) == straight


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


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_a_late_step_that_is_not_finite_stops_the_run_before_its_weights_are_saved(toy, tmp_path, monkeypatch, fails):
    """The error names it and not the next step, even where that one fails because of it; no checkpoint has it."""
    run, losses = make(train={"checkpoint": {"every": 4}}), TrainStep.losses

    def spoiled(self, model, batch, number):
        if fails and number == 3:
            raise RuntimeError("for what the step before did")
        loss, numbers = losses(self, model, batch, number)
        spoil = number == (2 if fails else 3)
        return (loss * float("nan") if spoil else loss), numbers | ({"loss": loss * float("nan")} if spoil else {})

    monkeypatch.setattr(TrainStep, "losses", spoiled)
    log_late(monkeypatch)
    with pytest.raises(GuidedCDError, match=f"not finite at step {3 if fails else 4}, samples toy"):
        trained(run, tmp_path / "a", tmp_path / "s")
    assert not checkpoint.paths(tmp_path / "a" / "checkpoints")


def test_out_of_memory_names_the_component(toy, tmp_path, monkeypatch):
    """Running out of memory names the component and the settings that need less."""
    run = make()
    store = preprocess(run, store_folder=tmp_path / "s")

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("guidedcd.training.losses.sides", full)
    with pytest.raises(GuidedCDError, match=r"out of memory in the student's forward pass.*`train.batch_size=1`"):
        Trainer(run, tmp_path, LatentStore(store), run.teacher.build()).fit()


def test_half_precision_needs_a_gpu(toy, tmp_path):
    """fp16 without its loss scaler would train on zeros; the error names the alternatives."""
    with pytest.raises(GuidedCDError, match="needs an NVIDIA GPU. Use bf16"):
        distil(make(train={"precision": "fp16"}))


@pytest.mark.parametrize("last", [False, True])
def test_ctrl_c_saves_before_it_stops(toy, tmp_path, monkeypatch, last):
    """The first Ctrl-C ends the step, saves and stops: a checkpoint, or after the last step the student."""
    begin = TrainStep.begin

    def signalled(self, number):
        if number == (6 if last else 3):
            os.kill(os.getpid(), signal.SIGINT)
        return begin(self, number)

    monkeypatch.setattr(TrainStep, "begin", signalled)
    with pytest.raises(KeyboardInterrupt):
        trained(make(), tmp_path / "a", tmp_path / "s")

    assert all((tmp_path / "a" / "student" / name).exists() is last for name in ("student.json", "checksums.json"))
    assert checkpoint.paths(tmp_path / "a" / "checkpoints")[-1].name == ("step-000004" if last else "step-000003")


def test_a_tracker_receives_every_logged_step(toy, tmp_path, monkeypatch):
    """A missing tracker is an error at once; an installed one receives the options and every line of the log."""
    from accelerate import tracking

    run = make(train={"tracker": "wandb", "steps": 3})
    monkeypatch.setattr("guidedcd.training.trackers.get_available_trackers", lambda: [])
    with pytest.raises(GuidedCDError, match="pip install wandb"):
        distil(run)

    class RecordingTracker(tracking.GeneralTracker):
        name, requires_logging_directory = "wandb", False
        calls: list = []  # noqa: RUF012 - the calls of all instances

        def __init__(self, run_name, **kwargs):
            super().__init__()

        def start(self):
            self.calls.append("start")

        @property
        def tracker(self):
            return self

        def store_init_configuration(self, values):
            self.calls.append(values["train.steps"])

        def log(self, values, step, **kwargs):
            self.calls.append((step, values["cd_loss"]))

        def finish(self):
            self.calls.append("finish")

    monkeypatch.setattr("guidedcd.training.trackers.get_available_trackers", lambda: ["wandb"])
    monkeypatch.setattr("guidedcd.training.trackers.filter_trackers", lambda name, folder: [name])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", RecordingTracker)
    lines = trained(run, tmp_path / "a", tmp_path / "s")

    assert [one for one in RecordingTracker.calls if one != "start"] == [
        3,
        *((x["step"], x["cd_loss"]) for x in lines),
        "finish",
    ]


@pytest.mark.slow
def test_validation_videos_do_not_disturb_the_training(toy, tmp_path):
    """Videos of the same prompts appear at intervals and in the report, and every number of the log stays the same."""
    train = {"steps": 4, "average": 0.5}
    plain = trained(make(train=train), tmp_path / "a", tmp_path / "s")
    run = make(train={**train, "validation": {"every": 2, "prompts": 3}}, evaluate={"steps": 2})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "run.json").write_text("{}")

    assert trained(run, tmp_path / "b", tmp_path / "s") == plain
    videos = sorted((tmp_path / "b" / "validation").rglob("*.mp4"))
    assert [path.parent.name for path in videos] == ["step-000002"] * 3 + ["step-000004"] * 3
    assert [path.name for path in videos[:3]] == [path.name for path in videos[3:]]
    assert read_json(videos[3].with_suffix(".json"))["step"] == 4
    page = write_report(tmp_path / "b").read_text()
    assert page.count("<video") == 6
    assert "step 2" in page


def test_a_reward_that_scored_nothing_is_named_at_the_end(toy, tmp_path, capsys):
    """A reward that reads none of a run's captions is named at the end; one that scored a sample is not."""
    run = make(routes={"short-caption": {}}, train={"steps": 2})
    trained(make(train={"steps": 2}), tmp_path / "a", tmp_path / "s")
    assert "scored no sample" not in capsys.readouterr().out

    Reward.max_tokens = 1
    try:
        trained(run, tmp_path / "b", tmp_path / "s")
    finally:
        Reward.max_tokens = 8

    assert "reward 'toy' of toy-components/toy_components scored no sample" in capsys.readouterr().out


def test_a_reward_whose_score_never_changes_is_named_at_the_end(toy, tmp_path, capsys, monkeypatch):
    """A reward with one score at all steps is named at the end; one with several scores is not."""
    trained(make(train={"steps": 3}), tmp_path / "a", tmp_path / "s")
    assert "trained nothing" not in capsys.readouterr().out

    monkeypatch.setattr(Reward, "forward", lambda self, video, captions: video.flatten(1).mean(1) * 0)
    trained(make(train={"steps": 3}), tmp_path / "b", tmp_path / "s")
    text = "reward 'toy' of toy-components/toy_components scored 0 at each of 3 steps, so that it trained nothing."
    assert text in " ".join(capsys.readouterr().out.split())


def test_a_reward_that_is_not_finite_is_named(toy, tmp_path, monkeypatch):
    """A loss that is not finite because of a reward names the reward, not the learning rate."""
    monkeypatch.setattr(Reward, "forward", lambda self, video, captions: video.flatten(1).mean(1) * float("nan"))

    with pytest.raises(GuidedCDError, match="the value of reward 'toy' of .* is not finite at step 1"):
        trained(make(train={"steps": 1}), tmp_path / "a", tmp_path / "s")
