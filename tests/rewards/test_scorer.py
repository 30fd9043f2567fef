"""The reward engine, with a teacher that counts its decodes and rewards that only look."""

from __future__ import annotations

from itertools import pairwise

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from guidedcd import GuidedCDError, RewardConfig, Route
from guidedcd.data.geometry import Geometry
from guidedcd.plugins.configs import PICKS
from guidedcd.rewards.scorer import RewardScorer, frame_indices

FRAMES = 8


class Teacher:
    """Decodes latents (B, 1, F, 2, 2) to pixels by repeating them; remembers how often, and of how many."""

    geometry = Geometry(frames=FRAMES, height=16, width=16, fps=8.0)

    def __init__(self) -> None:
        self.calls: list[tuple[int, tuple[int, ...], bool]] = []

    def decode(self, z: Tensor, frames=None) -> Tensor:
        self.calls.append((len(z), tuple(frames), torch.is_grad_enabled()))
        return z[:, :, list(frames)].transpose(1, 2).repeat(1, 1, 3, 1, 1).sigmoid()


class Bright(nn.Module):
    """Mean brightness plus the caption's length; remembers what it saw."""

    max_tokens = 5

    def __init__(self, result=None) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, list[str]]] = []
        self.result = result

    def count_tokens(self, text: str) -> int:
        return len(text)

    def forward(self, video: Tensor, captions) -> Tensor:
        self.seen.append((video, list(captions)))
        if self.result is not None:
            return self.result
        return video.mean((1, 2, 3, 4)) + torch.tensor([float(len(c)) for c in captions])


def latents(batch: int = 4) -> Tensor:
    """Predictions (batch, 1, F, 2, 2) that require a gradient."""
    return torch.randn(batch, 1, FRAMES, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()


def routes(*rewards: str) -> list[Route]:
    """One route per string, a reward's name per letter; captions are 1, 2, 3... letters long."""
    return [Route(caption="c" * (i + 1), rewards=frozenset(names)) for i, names in enumerate(rewards)]


def engine(**configs: RewardConfig) -> tuple[RewardScorer, Teacher]:
    """Rewards with the given configs."""
    teacher = Teacher()
    return RewardScorer({name: (Bright(), config) for name, config in configs.items()}, teacher), teacher


def seeded(seed: int = 0) -> torch.Generator:
    """A generator."""
    return torch.Generator().manual_seed(seed)


@settings(deadline=None)
@given(st.integers(1, 64), st.data(), st.sampled_from(PICKS), st.integers(0, 2**31))
def test_frames_are_distinct_ascending_and_repeatable(frames, data, pick, seed):
    """Any policy gives exactly `frames` distinct indices inside the video, in order, the same for the same seed."""
    config = RewardConfig(frames=data.draw(st.integers(1, frames)), pick=pick)
    indices = frame_indices(config, frames, seeded(seed))
    assert len(indices) == config.frames
    assert indices == sorted(set(indices))
    assert indices[0] >= 0 and indices[-1] < frames
    assert indices == frame_indices(config, frames, seeded(seed))
    if pick == "strided":
        steps = {b - a for a, b in pairwise(indices)}
        assert steps <= {frames // config.frames}
        assert indices[0] < frames // config.frames


def test_even_frames_have_both_ends():
    """`even` takes the first and the last frame and equal steps between them, rounded half to even."""
    assert frame_indices(RewardConfig(frames=4, pick="even"), 33) == [0, 11, 21, 32]
    assert frame_indices(RewardConfig(frames=10, pick="even"), 81) == [0, 9, 18, 27, 36, 44, 53, 62, 71, 80]
    assert frame_indices(RewardConfig(frames=1, pick="even"), 8) == [0]


@attrs.frozen(kw_only=True)
class PerSecond(RewardConfig):
    """One frame per second."""

    def count(self, total, clip_fps):
        return int(total / clip_fps)


def test_a_reward_may_choose_how_many_frames_it_receives():
    """A config that overrides `count` gets as many frames; none is one sentence."""
    assert len(frame_indices(PerSecond(), 33, fps=8.0)) == 4
    assert engine(a=PerSecond())[0](latents(), routes("a", "a", "a", "a"), seeded())["a"].shape == (4,)
    with pytest.raises(GuidedCDError, match="it can score no video of 7 frames; raise its option frames"):
        frame_indices(PerSecond(), 7, fps=8.0)


def test_every_frame_is_as_likely_as_any_other():
    """Random frames are uniform; strided starts are uniform over the stride."""
    counts = torch.zeros(16)
    starts = torch.zeros(4)
    generator = seeded()
    for _ in range(2000):
        counts[frame_indices(RewardConfig(frames=2), 16, generator)] += 1
        starts[frame_indices(RewardConfig(frames=4, pick="strided"), 16, generator)[0]] += 1
    assert (counts / 2000 - 2 / 16).abs().max() < 0.03
    assert (starts / 2000 - 1 / 4).abs().max() < 0.05


def test_too_many_frames_name_the_reward():
    """Asking for more frames than a video has is one sentence that names the reward and both numbers."""
    rewards, _ = engine(a=RewardConfig(frames=9))
    with pytest.raises(GuidedCDError, match=r"reward 'a': 9 frames are wanted of videos with 8"):
        rewards(latents(), routes("a", "a", "a", "a"), seeded())


def test_a_route_may_give_a_reward_a_text_of_its_own():
    """The rewards of one sample read different texts where its route has `captions`."""
    rewards, _ = engine(a=RewardConfig(), b=RewardConfig())
    rewards(latents(1), [Route(caption="whole", captions={"b": "part"}, rewards=frozenset("ab"))], seeded())

    assert [rewards.modules[name].seen[0][1] for name in "ab"] == [["whole"], ["part"]]


def test_equal_choices_share_one_decode():
    """Rewards with equal frames and pick receive the same frames from one decode; another choice is another decode."""
    rewards, teacher = engine(
        a=RewardConfig(), b=RewardConfig(weight=2.0), c=RewardConfig(frames=4), d=RewardConfig(pick="strided")
    )
    rewards(latents(), routes("abcd", "abcd", "abcd", "abcd"), seeded())
    assert len(teacher.calls) == 3
    assert torch.equal(rewards.modules["a"].seen[0][0], rewards.modules["b"].seen[0][0])
    assert [len(frames) for _, frames, _ in teacher.calls] == [2, 4, 2]


@settings(deadline=None)
@given(st.lists(st.sets(st.sampled_from("abc")).map("".join), min_size=1, max_size=6), st.none() | st.integers(1, 6))
def test_samples_go_where_they_are_routed(wanted, limit):
    """Each reward scores exactly the samples routed to it, with their captions; unrouted samples are not decoded."""
    rewards, teacher = engine(a=RewardConfig(), b=RewardConfig(), c=RewardConfig(pick="strided"))
    z = latents(len(wanted))
    scores = rewards.score(z, routes(*wanted), seeded(), limit=limit)
    for names in ("ab", "c"):
        decoded = [i for i, one in enumerate(wanted) if set(one) & set(names)][:limit]
        for name in names:
            rows = tuple(i for i in decoded if name in wanted[i])
            assert scores[name].samples == rows
            assert scores[name].scores.shape == (len(rows),)
            if rows:
                assert rewards.modules[name].seen[0][1] == ["c" * (i + 1) for i in rows]
    decodes = [[i for i, one in enumerate(wanted) if set(one) & set(names)][:limit] for names in ("ab", "c")]
    assert [count for count, _, _ in teacher.calls] == [len(one) for one in decodes if one]


def test_scores_do_not_depend_on_who_else_is_routed():
    """A sample's score is the same whether or not other samples are scored with it."""
    rewards, _ = engine(a=RewardConfig())
    together = rewards.score(latents(), routes("a", "a", "a", "a"), seeded())["a"].scores
    alone = rewards.score(latents(), routes("", "", "a", ""), seeded())["a"].scores
    torch.testing.assert_close(together[2:3], alone)


def test_total_is_the_weighted_sum_of_means():
    """The total is sum of weight * mean over the routed samples, and raising it raises the scores."""
    rewards, _ = engine(a=RewardConfig(weight=0.2), b=RewardConfig(weight=0.5, frames=4))
    z = latents()
    scores = rewards.score(z, routes("ab", "a", "", "b"), seeded())
    total = rewards.total(scores)
    expected = 0.2 * scores["a"].scores.mean() + 0.5 * scores["b"].scores.mean()
    torch.testing.assert_close(total, expected)
    total.backward()
    assert (z.grad[2] == 0).all()
    assert z.grad[0].abs().sum() > 0
    with torch.no_grad():
        assert rewards.total(rewards.score(z + z.grad, routes("ab", "a", "", "b"), seeded())) > total


def test_weight_zero_is_only_logged():
    """A reward of weight 0 is scored without gradient; alone, its frames are decoded without gradient too."""
    rewards, teacher = engine(a=RewardConfig(weight=0.0), b=RewardConfig(), c=RewardConfig(weight=0.0, frames=4))
    scores = rewards(latents(), routes(*["abc"] * 4), seeded())
    assert not scores["a"].requires_grad
    assert scores["b"].requires_grad
    assert [grad for _, _, grad in teacher.calls] == [True, False]
    assert rewards.total({"a": scores["a"]}) == 0


def test_nothing_routed_is_no_decode_and_no_loss():
    """Without routed samples nothing is decoded, every reward reports no scores, and the total is 0."""
    rewards, teacher = engine(a=RewardConfig())
    scores = rewards.score(latents(), routes("", "", "", ""), seeded())
    assert teacher.calls == []
    assert scores["a"].scores.shape == (0,)
    assert rewards.total(scores) == 0.0


def test_low_memory_gives_the_same_scores_and_gradients():
    """Decoding frame by frame, and again in the backward pass, changes neither scores nor gradients."""
    results = []
    for low_memory in (False, True):
        teacher = Teacher()
        rewards = RewardScorer({"a": (Bright(), RewardConfig())}, teacher, low_memory=low_memory)
        z = latents()
        scores = rewards(z, routes("a", "", "a", "a"), seeded())["a"]
        scores.sum().backward()
        results.append((scores.detach(), z.grad, len(teacher.calls)))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert [calls for *_, calls in results] == [1, 3 * 2 * 2]  # samples, frames, passes


def test_errors_inside_a_reward_name_the_reward():
    """An exception in a reward keeps its type and gains a note with the reward and its plugin."""

    class Broken(Bright):
        def forward(self, video, captions):
            raise KeyError("oops")

    whose = {"a": "reward 'a' of acme/a"}
    rewards = RewardScorer({"a": (Broken(), RewardConfig())}, Teacher(), whose=whose)
    with pytest.raises(KeyError) as caught:
        rewards(latents(), routes("a", "a", "a", "a"), seeded())
    assert "in reward 'a' of acme/a" in caught.value.__notes__


@pytest.mark.parametrize("result", [torch.zeros(()), torch.zeros(4, 1), 3.0])
def test_a_reward_must_return_one_score_each(result):
    """Anything but (b,) is refused, with what was returned."""
    rewards = RewardScorer({"a": (Bright(result), RewardConfig())}, Teacher())
    with pytest.raises(GuidedCDError, match=r"reward 'a' returned .* for 4 videos"):
        rewards(latents(), routes("a", "a", "a", "a"), seeded())


def test_random_preparation_draws_from_the_steps_generator():
    """A reward with an attribute `generator` has the step's one during the call, and its own again afterwards."""

    class Random(Bright):
        generator = None

        def forward(self, video, captions):
            return super().forward(video, captions) + torch.rand(len(video), generator=self.generator)

    module = Random()
    rewards = RewardScorer({"a": (module, RewardConfig())}, Teacher())
    first, again = (rewards(latents(), routes(*"aaaa"), seeded(3))["a"] for _ in range(2))
    other = rewards(latents(), routes(*"aaaa"), seeded(4))["a"]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert module.generator is None


def test_frames_do_not_depend_on_routing():
    """All choices are drawn before anything is scored, so routing never changes which frames are seen."""
    configs = {"a": RewardConfig(), "b": RewardConfig(frames=3)}
    frames = []
    for names in ("ab", "b"):
        rewards, teacher = engine(**configs)
        rewards(latents(), routes(*[names] * 4), seeded(5))
        frames.append(teacher.calls[-1][1])
    assert frames[0] == frames[1]


def test_readers_count_with_the_rewards_own_tokenizers():
    """Routing uses each reward's own context length and token count."""
    rewards, _ = engine(a=RewardConfig())
    assert rewards.readers["a"].max_tokens == 5
    assert rewards.readers["a"].count("abc") == 3
