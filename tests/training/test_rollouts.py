"""The student's own videos for the rewards: prompts, randomness, gradients, and what routes make of them."""

from __future__ import annotations

import attrs
import pytest
import torch
from guidedcd_shapes import ShapesTeacherConfig
from guidedcd_shapes.teacher import ShapesTeacher
from short_training import interrupted, trained
from toy_plugin import make

from guidedcd.data import prompts
from guidedcd.data.routing import Reader, Sample, route
from guidedcd.diffusion.sampler import sample
from guidedcd.errors import GuidedCDError
from guidedcd.models.student import Student
from guidedcd.training.rollouts import Rollouts, listed
from guidedcd.workflow import distil

CLIPS = [Sample(id=f"{i}", dataset="toy", caption=f"clip {i}") for i in range(9)]


def routed(sample: Sample):
    """Every reward of the toy run reads everything."""
    with_reader = attrs.evolve(sample, readers={"toy": Reader(max_tokens=8, count=len)})
    return with_reader, route(with_reader, [])


def rollouts(run, teacher, clips=CLIPS, **options) -> Rollouts:
    """Those of a run, with captions of clips."""
    return Rollouts(run, teacher, clips, routed=routed, **options)


def counting(student):
    """The student, and a list of (timestep, whether the pass has a gradient) of its calls."""
    calls = []

    def model(z, t, *args):
        calls.append((int(t[0]), torch.is_grad_enabled()))
        return student(z, t, *args)

    return model, calls


def test_only_the_last_pass_has_a_gradient(toy):
    """A step's videos end after a random number of passes of the sampler's grid, and the last one alone is recorded."""
    run = make(train={"rollouts": {"videos": 2, "steps": 4}})
    teacher = run.teacher.build()
    own, (model, calls) = rollouts(run, teacher), counting(Student(teacher, energies=("toy",)))
    lengths = set()
    for number in range(24):
        calls.clear()
        rollout = own(model, number)
        predicted, routes = rollout.latents, rollout.routes
        assert predicted.shape == (2, *teacher.geometry.latent_shape) and predicted.requires_grad
        assert [t for t, _ in calls] == [999, 749, 499, 249][: len(calls)]
        assert [grad for _, grad in calls] == [False] * (len(calls) - 1) + [True]
        assert all(one.rewards == {"toy"} for one in routes)
        lengths.add(len(calls))
    assert lengths == {1, 2, 3, 4}


def test_the_last_of_all_passes_is_what_sampling_gives(toy):
    """With the same noise, omega and strengths, a video of all passes is the sampler's, bit for bit."""
    run = make(train={"rollouts": {"videos": 3, "steps": 1}}, solver={"omega": [2.5, 2.5]})
    teacher = run.teacher.build()
    student = Student(teacher, energies=("toy",)).eval()
    torch.nn.init.normal_(student.network.time_embedding.cond_proj.outermost.weight, std=0.1)
    own, seen = rollouts(run, teacher), []

    def model(z, *args):
        seen.append(z)
        return student(z, *args)

    rollout = own(model, 7)
    predicted, routes = rollout.latents, rollout.routes
    cond = teacher.embed([one.caption for one in routes])
    lambdas = [run.energies["toy"].relative / 6]
    expected = sample(student, teacher, cond, seen[0], 1, 2.5, lambdas, run.energies["toy"].fraction)
    assert torch.equal(predicted.detach(), expected)


def test_numbers_depend_on_seed_and_step_alone(toy):
    """A batch number gives the same videos whatever came before; two processes make those of one with twice as many."""
    run = make(train={"rollouts": {"videos": 2, "steps": 2}})
    teacher = run.teacher.build()
    student = Student(teacher, energies=("toy",))
    whole = rollouts(make(train={"rollouts": {"videos": 4, "steps": 2}}), teacher)
    parts = [rollouts(run, teacher, process=i, processes=2) for i in range(2)]
    for number in (5, 3, 5):
        rollout = whole(student, number)
        expected, routes = rollout.latents, rollout.routes
        shares = [part(student, number) for part in parts]
        torch.testing.assert_close(torch.cat([one.latents for one in shares]), expected, atol=1e-5, rtol=1e-5)
        assert [r.caption for one in shares for r in one.routes] == [r.caption for r in routes]
    other = rollouts(make(train={"rollouts": {"videos": 4, "steps": 2}}, seed=1), teacher)
    assert [s.id for s, _ in other.chosen(5)] != [s.id for s, _ in whole.chosen(5)]


def test_prompts_come_from_a_file_the_teacher_or_the_store(toy, tmp_path):
    """A file of prompts wins over the teacher's own, which win over the store's captions."""
    run = make(train={"rollouts": {"videos": 1}})
    teacher = run.teacher.build()
    assert {s.caption for s, _ in rollouts(run, teacher).prompts} == {f"clip {i}" for i in range(9)}
    teacher.training_prompts = lambda count: [prompts.Prompt(text="of the teacher")] * min(count, 3)
    teacher.prompts = lambda split, count: [prompts.Prompt(text=f"{split} {i}") for i in range(count)]
    assert [s.caption for s, _ in rollouts(run, teacher).prompts] == ["of the teacher"] * 3
    (tmp_path / "list.txt").write_text("one\n\ntwo\n")
    listed = make(train={"rollouts": {"videos": 1, "prompts": str(tmp_path / "list.txt")}})
    texts = [s for s, _ in rollouts(listed, teacher).prompts]
    assert [s.caption for s in texts] == ["one", "two"] and {s.dataset for s in texts} == {"prompts"}
    with pytest.raises(GuidedCDError, match="there is no prompts file"):
        rollouts(make(train={"rollouts": {"videos": 1, "prompts": str(tmp_path / "none.txt")}}), teacher)


def test_a_missing_file_of_prompts_is_an_error_before_the_work(toy, tmp_path):
    """The run stops before its latents are computed, and nothing is written; a file that is not used is not read."""
    missing = str(tmp_path / "none.txt")
    with pytest.raises(GuidedCDError, match="there is no prompts file"):
        distil(make(train={"rollouts": {"videos": 1, "prompts": missing}}), out=tmp_path / "a", store=tmp_path / "s")
    assert not (tmp_path / "a").exists() and not (tmp_path / "s").exists()
    assert listed(make(train={"rollouts": {"prompts": missing}})) == []


def test_prompts_without_a_reward_are_left_out(toy):
    """Routes decide about prompts as about clips; when none is left, the error names the options to change."""
    run = make(train={"rollouts": {"videos": 1}})
    teacher = run.teacher.build()

    def none(sample):
        reader_step, routes = routed(sample)
        return reader_step, attrs.evolve(routes, rewards=frozenset() if sample.caption != "clip 3" else routes.rewards)

    kept = Rollouts(run, teacher, CLIPS, routed=none).prompts
    assert [s.caption for s, _ in kept] == ["clip 3"]
    with pytest.raises(GuidedCDError, match="none of 3 prompts goes to a reward.*`train.rollouts.prompts=.FILE.`"):
        Rollouts(run, teacher, CLIPS[:3], routed=none)


def test_the_proving_ground_has_prompts_of_its_own():
    """More than a thousand prompts, with and without motion words; none is among those that evaluations measure."""
    teacher = ShapesTeacher(ShapesTeacherConfig())
    own_prompts = prompts.training(teacher)
    assert 1000 < len(own_prompts) < 2000 and 500 < sum("motion" in p.named for p in own_prompts) < 1001
    for count in (48, 384):
        splits, others = prompts.evaluation(teacher, count)
        measured = {p.text for some in (*splits.values(), others) for p in some}
        assert not measured & {p.text for p in own_prompts}
    assert prompts.training(object()) == []


@pytest.mark.slow
def test_training_with_rollouts_resumes_exactly(toy, tmp_path, monkeypatch):
    """Own videos raise the reward's share of samples, change the student, and a resumed run repeats every number."""
    plain, own = make(), make(train={"rollouts": {"videos": 3, "steps": 2}})
    store = tmp_path / "s"
    without, lines = trained(plain, tmp_path / "p", store), trained(own, tmp_path / "a", store)
    assert all(line["routed/toy"] == 1 for line in lines)
    assert [line["cd_loss"] for line in lines][1:] != [line["cd_loss"] for line in without][1:]
    with interrupted(monkeypatch, 4):
        trained(own, tmp_path / "b", store)
    assert trained(own, tmp_path / "b", store) == lines


@pytest.mark.slow
def test_without_rewards_there_are_no_rollouts(toy, tmp_path):
    """A run of energies alone, with the same settings, needs no prompts and trains as before."""
    one = trained(
        make(rewards={}, replace=("rewards",), train={"rollouts": {"videos": 3}}), tmp_path / "a", tmp_path / "s"
    )
    other = trained(make(rewards={}, replace=("rewards",)), tmp_path / "b", tmp_path / "s")
    assert one == other


def test_a_loss_that_is_not_finite_names_the_prompts(toy, tmp_path, monkeypatch):
    """The message lists the step's clips and, in quotation marks, its prompts."""
    call = Rollouts.__call__

    def broken(self, model, number, shape):
        rollout = call(self, model, number)
        return attrs.evolve(rollout, latents=rollout.latents * float("inf"))

    monkeypatch.setattr(Rollouts, "__call__", broken)
    with pytest.raises(GuidedCDError, match=r"not finite at step 1, samples toy/\d#\d, toy/\d#\d, 'clip \d'"):
        trained(make(train={"rollouts": {"videos": 1}}), tmp_path / "a", tmp_path / "s")
