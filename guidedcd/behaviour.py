"""What a component of each kind must do, checked on a tiny teacher: the rules that `guidedcd.testing` hands out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from guidedcd.guidance import guided_step
from guidedcd.routes import Reader, Route, Sample
from guidedcd.seen import Seen

if TYPE_CHECKING:
    from guidedcd.testing import Subject

CAPTIONS = ("a red ball rolls to the left", "two boats drift under a bridge")
T = 700
"""A noise level inside the guided half."""


def random(shape: Sequence[int], seed: int) -> Tensor:
    """Standard normal numbers of their own generator."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


def look(subject: Subject, z: Tensor, t: int = T) -> Seen:
    """What the tiny teacher says of latents (B, C, F, H, W), with the records that the energy needs."""
    teacher, captions = subject.teacher, CAPTIONS[: len(z)]
    needs = tuple(getattr(subject.built, "needs", ()))
    return teacher.seen(z, torch.full((len(z),), t), teacher.embed(captions), needs=needs, captions=captions)


def latents(subject: Subject, seed: int, batch: int = 2) -> Tensor:
    """Noisy latents of the tiny teacher's size."""
    return random((batch, *subject.teacher.geometry.latent_shape), seed)


def reference(subject: Subject) -> Seen:
    """What an energy compares with in these checks."""
    with torch.no_grad():
        return look(subject, latents(subject, 1))


@contextmanager
def unchanged(what: str) -> Iterator[None]:
    """Fail if the block moves torch's random state or leaves gradients switched differently."""
    state, grad = torch.random.get_rng_state(), torch.is_grad_enabled()
    yield
    assert torch.equal(state, torch.random.get_rng_state()), f"{what} drew from torch's global random generator"
    assert grad == torch.is_grad_enabled(), f"{what} left gradients switched {'off' if grad else 'on'}"


def _is_batch(values: Any, batch: int, what: str) -> None:
    assert isinstance(values, Tensor), f"{what} returned {type(values).__name__}, not a tensor"
    assert values.shape == (batch,), f"{what} returned shape {tuple(values.shape)} for {batch} samples, not ({batch},)"
    assert torch.isfinite(values).all(), f"{what} is not finite: {values.tolist()}"


# Energies


def energy_is_one_number_per_sample(subject: Subject) -> None:
    """It returns (B,), finite, and leaves the random generator and the gradient mode alone."""
    seen, other = look(subject, latents(subject, 2)), reference(subject)
    with unchanged("the energy"):
        _is_batch(subject.built(seen, other), 2, "the energy")


def energy_has_a_gradient(subject: Subject) -> None:
    """Its gradient reaches the latents of every sample, finite and not zero, and stays within the sample."""
    z = latents(subject, 2).requires_grad_()
    energy = subject.built(look(subject, z), reference(subject))
    assert energy.requires_grad, "the energy does not depend on seen.z: something detached it"
    (score,) = torch.autograd.grad(energy[0], z, allow_unused=True)
    assert score is not None, "the energy does not depend on seen.z: something detached it"
    assert torch.isfinite(score).all(), "the energy's gradient is not finite"
    assert score[0].abs().max() > 0, "the energy's gradient is zero"
    assert score[1].abs().max() == 0, "the energy of one sample depends on another sample of the batch"


def energy_falls_along_its_score(subject: Subject) -> None:
    """One small guided step lowers it."""
    teacher = subject.teacher
    z = latents(subject, 2).requires_grad_()
    other = reference(subject)
    seen = look(subject, z)
    before = subject.built(seen, other)
    (score,) = torch.autograd.grad(before.sum(), z)
    z, output = z.detach(), seen.output.detach()
    batch = len(z)
    t, zero, one = torch.full((batch,), T), torch.zeros(batch), torch.ones(batch)

    def step(*terms: tuple[Tensor, Tensor]) -> Tensor:
        return guided_step(teacher.schedule, z, output, output, zero, t, t - 20, terms)

    moved = step((score, one)) - step()
    unit = moved / moved.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1)
    for share in (1e-2, 3e-3, 1e-3):  # of the latents' norm: first order must win over curvature, and over rounding
        with torch.no_grad():
            after = subject.built(
                look(subject, z + share * z.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1) * unit), other
            )
        if (after < before.detach()).all():
            return
    raise AssertionError(
        f"a guided step raised the energy from {before.tolist()} to {after.tolist()}: its gradient must be that of the "
        "value, and the value lower for better samples"
    )


def energy_is_least_at_its_reference(subject: Subject) -> None:
    """A sample equal to its reference has no more energy than another one."""
    other = reference(subject)
    with torch.no_grad():
        same, different = subject.built(other, other), subject.built(look(subject, latents(subject, 2)), other)
    assert (same <= different + 1e-6).all(), f"energy {same.tolist()} at the reference, {different.tolist()} elsewhere"


def energy_treats_samples_alone(subject: Subject) -> None:
    """A batch of two has the energies of the two alone."""
    z, r = latents(subject, 2), latents(subject, 1)
    with torch.no_grad():
        both = subject.built(look(subject, z), look(subject, r))
        first = subject.built(look(subject, z[:1]), look(subject, r[:1]))
    assert torch.allclose(both[:1], first, rtol=1e-3, atol=1e-7), f"{both[0].item()} in a batch, {first.item()} alone"


# Rewards


def video(subject: Subject, batch: int = 2) -> Tensor:
    """Frames (B, F, 3, 32, 40) in [0, 1], as many as the reward asks for."""
    return random((batch, subject.options.frames, 3, 32, 40), 3).mul(0.2).add(0.5).clamp(0, 1)


def reward_is_one_number_per_sample(subject: Subject) -> None:
    """It returns (B,), finite, and leaves the random generator and the gradient mode alone."""
    frames = video(subject)
    with unchanged("the reward"):
        _is_batch(subject.built(frames, CAPTIONS), 2, "the reward")


def reward_has_a_gradient(subject: Subject) -> None:
    """Its gradient reaches the frames of every sample, finite and not zero, and stays within the sample."""
    frames = video(subject).requires_grad_()
    score = subject.built(frames, CAPTIONS)
    assert score.requires_grad, "the reward does not depend on the frames: something detached it"
    (gradient,) = torch.autograd.grad(score[0], frames, allow_unused=True)
    assert gradient is not None, "the reward does not depend on the frames: something detached it"
    assert torch.isfinite(gradient).all(), "the reward's gradient is not finite"
    assert gradient[0].abs().max() > 0, "the reward's gradient is zero"
    assert gradient[1].abs().max() == 0, "the reward of one sample depends on another sample of the batch"


def reward_treats_samples_alone(subject: Subject) -> None:
    """A batch of two has the rewards of the two alone."""
    frames = video(subject)
    with torch.no_grad():
        both = subject.built(frames, CAPTIONS)
        alone = torch.cat([subject.built(frames[i : i + 1], CAPTIONS[i : i + 1]) for i in range(2)])
    assert torch.allclose(both, alone, rtol=1e-3, atol=1e-4), f"{both.tolist()} in a batch, {alone.tolist()} alone"


def reward_is_frozen(subject: Subject) -> None:
    """It is a module in eval mode without a parameter to train."""
    module = subject.built
    assert isinstance(module, torch.nn.Module), f"a reward is an nn.Module, not {type(module).__name__}"
    assert not module.training, "call .eval(): dropout would make the reward random"
    trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    assert not trained, f"call .requires_grad_(False): {trained[:3]} would gather gradients"


def reward_reads_text(subject: Subject) -> None:
    """It says how many tokens a text has and how many it reads."""
    short, long = (subject.built.count_tokens(text) for text in ("a ball", "a ball " * 200))
    assert 0 < short < long, f"count_tokens says {short} for two words and {long} for four hundred"
    limit = subject.built.max_tokens
    assert isinstance(limit, int) and limit > 0, f"max_tokens is {limit!r}"


# Routes


def samples() -> list[Sample]:
    """Samples with and without a short caption, one of them too long for every reward."""
    readers = {"one": Reader(max_tokens=4, count=_words), "two": Reader(max_tokens=12, count=_words)}
    long = "word " * 40
    return [
        Sample(id="1", dataset="d", caption="a ball", readers=readers),
        Sample(id="2", dataset="d", caption=long, readers=readers, motion=3.0, tags=frozenset({"web"})),
        Sample(id="3", dataset="e", caption=long, short_caption="a boat drifts", readers=readers, motion=0.0),
        Sample(id="4", dataset="e", caption="", readers={}),
    ]


def _words(text: str) -> int:
    return len(text.split()) + 2


def _routed(subject: Subject) -> Iterator[tuple[Sample, Route, Route]]:
    for sample in samples():
        before = Route(caption=sample.caption, rewards=frozenset(sample.readers))
        after = subject.built(sample, before)
        assert isinstance(after, Route), f"sample {sample.id} got {after!r}, not a Route"
        yield sample, before, after


def route_is_total(subject: Subject) -> None:
    """Every sample gets a route, to rewards of the run."""
    for sample, _, after in _routed(subject):
        unknown = after.rewards - set(sample.readers)
        assert not unknown, f"sample {sample.id} is routed to {sorted(unknown)}, which the run has not"


def route_is_pure(subject: Subject) -> None:
    """The same sample and route give the same route, time and again."""
    for sample, before, after in _routed(subject):
        assert subject.built(sample, before) == after, f"sample {sample.id} took another route the second time"


def route_invents_no_caption(subject: Subject) -> None:
    """The caption it chooses is one of the sample's."""
    for sample, before, after in _routed(subject):
        known = {sample.caption, sample.short_caption, before.caption}
        assert after.caption in known, f"sample {sample.id} is given a caption that is not its own: {after.caption!r}"


# Teachers, datasets, metrics


def teacher_keeps_its_shapes(subject: Subject) -> None:
    """Pixels and latents have the shapes of its geometry, and prediction those of the latents."""
    teacher = subject.built
    geometry = teacher.geometry
    with torch.no_grad():
        z = teacher.encode(torch.full((1, *geometry.pixel_shape), 0.5))
        assert z.shape == (1, *geometry.latent_shape), (
            f"encode gave {tuple(z.shape)}, not {(1, *geometry.latent_shape)}"
        )
        frames = teacher.decode(z, [0])
        assert frames.shape == (1, 1, *geometry.pixel_shape[1:]), f"decode gave {tuple(frames.shape)}"
        assert frames.min() >= 0 and frames.max() <= 1, "decode must clamp to [0, 1]"
        cond, null = teacher.embed(["a ball"]), teacher.null(1)
        assert "prompt_embeds" in cond, f"embed gave {sorted(cond)} without prompt_embeds"
        for name, value in cond.items():
            assert value.shape == null[name].shape, f"{name} of the empty caption has shape {tuple(null[name].shape)}"
        seen = teacher.seen(z, torch.tensor([T], device=z.device), cond, captions=["a ball"])
        assert seen.output.shape == z.shape, f"the prediction has shape {tuple(seen.output.shape)}"


def teacher_has_one_fingerprint(subject: Subject) -> None:
    """Its fingerprint is the same text every time."""
    first = subject.built.fingerprint()
    assert isinstance(first, str) and first == subject.built.fingerprint(), "the fingerprint is not one text"


def dataset_yields_clips(subject: Subject) -> None:
    """It opens as a sequence whose clips have the size that was asked for, the same ones every time."""
    from guidedcd.teachers.protocol import Geometry

    geometry = Geometry(frames=4, height=32, width=32, fps=8)
    clips = subject.built.open(geometry)
    assert len(clips) > 0, "the dataset is empty"
    clip, again = clips[0], clips[0]
    assert clip.video.shape == geometry.pixel_shape, f"a clip has shape {tuple(clip.video.shape)}"
    assert clip.video.min() >= 0 and clip.video.max() <= 1, "pixels must lie in [0, 1]"
    assert clip.id == again.id and torch.equal(clip.video, again.video), "the same place holds another clip each time"


def metric_scores_each_video(subject: Subject) -> None:
    """It returns numbers (B,) by name."""
    from guidedcd.data import Prompt

    prompts = [Prompt(text=caption) for caption in CAPTIONS]
    scores = subject.built(random((2, 8, 3, 48, 48), 4).mul(0.2).add(0.5).clamp(0, 1), prompts)
    assert scores, "the metric returned no score"
    for name, values in scores.items():
        assert values.shape == (2,), f"{name} has shape {tuple(values.shape)}, not (2,)"
        assert all(math.isfinite(v) or math.isnan(v) for v in values.tolist()), f"{name} is infinite"


Rule = Callable[["Subject"], None]

RULES: dict[str, list[Rule]] = {
    "energy": [
        energy_is_one_number_per_sample,
        energy_has_a_gradient,
        energy_falls_along_its_score,
        energy_is_least_at_its_reference,
        energy_treats_samples_alone,
    ],
    "reward": [
        reward_is_one_number_per_sample,
        reward_has_a_gradient,
        reward_treats_samples_alone,
        reward_is_frozen,
        reward_reads_text,
    ],
    "route": [route_is_total, route_is_pure, route_invents_no_caption],
    "teacher": [teacher_keeps_its_shapes, teacher_has_one_fingerprint],
    "dataset": [dataset_yields_clips],
    "metric": [metric_scores_each_video],
}
"""By kind, every rule of behaviour."""
