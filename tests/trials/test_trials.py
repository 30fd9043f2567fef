"""`guidedcd try`: an energy on a teacher, a reward on videos, a route on captions."""

from __future__ import annotations

import json

import pytest
import torch

from guidedcd.cli import main
from guidedcd.data import media
from guidedcd.data.panels import GAP, TITLE, heat, side_by_side

PLUGIN = """
import attrs
import torch

from guidedcd import EnergyConfig, RewardConfig, RouteConfig, hookimpl


class Still:
    reference_free = True

    def __init__(self, config):
        pass

    def __call__(self, seen, reference):
        return seen.x0.diff(dim=2).square().flatten(1).mean(1)


class Corner(torch.nn.Module):
    max_tokens = 3

    def __init__(self, config):
        super().__init__()

    def count_tokens(self, text):
        return len(text.split())

    def forward(self, frames, captions):
        return frames[..., :2, :2].flatten(1).mean(1)


class Broken(Corner):
    def forward(self, frames, captions):
        return super().forward(frames, captions) * float("nan")


class Short:
    def __init__(self, config):
        pass

    def __call__(self, sample, route):
        fits = frozenset(name for name in route.rewards if sample.fits(name, sample.caption))
        return attrs.evolve(route, rewards=fits, guided="still" not in sample.caption, caption=sample.caption.upper())


@hookimpl
def register_energies(register):
    register("still", "acme_trial:Still", config=EnergyConfig)


@hookimpl
def register_rewards(register):
    register("corner", "acme_trial:Corner", config=RewardConfig)
    register("broken", "acme_trial:Broken", config=RewardConfig)


@hookimpl
def register_routes(register):
    register("short", "acme_trial:Short", config=RouteConfig)
"""


@pytest.fixture(autouse=True)
def clip(toy, install, tmp_path):
    """Two plugins, and a video with a prompt in its metadata."""
    install("acme-trial", PLUGIN)
    video = torch.rand((3, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    return media.write_video(tmp_path / "clip.mp4", video, fps=8, metadata={"prompt": "a red ring"})


def try_(*arguments: str) -> int:
    """Run `guidedcd try`; the exit status."""
    with pytest.raises(SystemExit) as done:
        main(["try", *arguments])
    return done.value.code or 0


TOY = ("--teacher", "toy", "--device", "cpu", "--steps", "3")


def test_an_energy_is_tried_on_the_same_noise(tmp_path, clip, capsys):
    """Both arms begin with the same energy; the files and the table have every step, share and metric."""
    options = ("--reference", str(clip), "--prompt", "a star", "--energies.toy.relative", "0.5")
    assert try_("energy", "toy", *TOY, *options) == 0
    out, folder = capsys.readouterr().out, tmp_path / "trials" / "toy"
    trial = json.loads((folder / "energy.json").read_text())
    (video,) = trial["videos"]

    assert trial["timesteps"] == [998, 665, 332] and trial["reference_prompt"] == "a red ring"
    assert video["energy"]["without"][0] == pytest.approx(video["energy"]["with"][0])
    assert video["energy"]["without"][1:] != video["energy"]["with"][1:]
    assert video["energy"]["share"] == [pytest.approx(0.5), 0.0, 0.0]
    assert {"temporal_flickering", "dynamic_degree"} <= set(trial["metrics"])
    assert "50.0%" in out and "not guided" in out and "relative 0.5" in out
    columns = media.read_video(folder / "side_by_side.mp4")[0]
    assert columns.shape == (3, 3, TITLE + 256 + GAP, 3 * 256 + 2 * GAP)
    assert (folder / "contact_sheet.png").stat().st_size > 0


def test_an_energy_without_reference_needs_none(tmp_path, capsys):
    """The pictures then have two columns; prompts are general ones, as this teacher has none of its own."""
    assert try_("energy", "still", *TOY, "--videos", "2", "--out", "here") == 0
    trial = json.loads((tmp_path / "here" / "energy.json").read_text())

    assert len(trial["videos"]) == 2 and trial["reference_prompt"] is None


def test_a_reward_is_drawn_over_the_pixels(tmp_path, clip, capsys):
    """The gradient lies where the reward looks, and a caption that it cannot read is noted."""
    from guidedcd.cli.run_flags import read_selection
    from guidedcd.cli.try_ import _tried
    from guidedcd.config.trials import TrialConfig
    from guidedcd.plugins.registry import load_plugins
    from guidedcd.trials.reward import try_reward

    selection = read_selection(None, load_plugins(), _tried("rewards", "corner"))
    (one,) = try_reward(selection, [clip], out=tmp_path / "r", config=TrialConfig(device="cpu"))

    assert one.caption == "a red ring" and one.score == pytest.approx(one.frames[..., :2, :2].mean().item())
    assert one.gradient[:, :2, :2].min() > 0 and one.gradient[:, 2:].max() == 0
    assert json.loads((tmp_path / "r" / "reward.json").read_text())["videos"][0]["tokens"] == 3
    assert try_("reward", "corner", str(clip), "--prompt", "a b c d", "--device", "cpu") == 0
    assert "1 of 1 captions have more than the 3 tokens" in capsys.readouterr().out


def test_a_reward_receives_the_pixels_that_were_sampled(tmp_path, clip):
    """An enlarged video is reduced to its own size first."""
    from guidedcd.trials.reward import _videos

    video, _ = media.read_video(clip)
    large = media.write_video(tmp_path / "large.mp4", video, fps=8, enlarge=4, quality=1, metadata={"enlarge": 4})
    ((_, _, pixels, _),) = _videos(None, [large], ["a ring"], None)

    torch.testing.assert_close(pixels, video, atol=0.1, rtol=0)


def test_a_reward_that_is_not_finite_is_an_error(clip, capsys):
    """Nothing is written, as JSON has no NaN."""
    assert try_("reward", "broken", str(clip), "--device", "cpu", "--out", "b") == 2
    assert "gave nan for" in capsys.readouterr().err
    assert not list(clip.parent.glob("b/*.json"))


def test_a_reward_is_tried_on_sampled_videos(capsys):
    """Without files the teacher samples."""
    assert try_("reward", "corner", *TOY, "--videos", "1", "--prompt", "a star") == 0
    assert "seed 0" in capsys.readouterr().out


def test_a_route_is_printed_for_each_caption(capsys):
    """Which rewards score a caption, what they read, and whether energies apply."""
    assert try_("route", "short", "a red ring", "a still life of pears", "--rewards", "corner,toy") == 0
    out = capsys.readouterr().out

    assert out.startswith("route    loading PyTorch and the route\n")
    assert "yes, 3 of 3 tokens" in out and "no, 5 of 3 tokens" in out
    assert "rewards read: A RED RING" in out
    assert "2 captions, scored by corner 1, toy 0; 1 without energies" in out


def test_mistakes_are_one_sentence(clip, tmp_path, capsys):
    """Each wrong call exits 2 with one line that states the remedy."""
    bare = media.write_video(tmp_path / "bare.mp4", torch.rand(3, 3, 8, 8), fps=8)
    cases = {
        ("energy", "toi", *TOY): "Did you mean 'toy'?",
        ("energy", "toy", *TOY): "energy 'toy' compares with a reference video: give --reference clip.mp4",
        ("energy", "toy", *TOY, "--reference", "no.mp4"): "no.mp4 is missing",
        ("energy", "toy", "--steps", "0"): "--steps",
        ("reward", "corner", str(bare), "--device", "cpu"): "has no prompt in its metadata: give its caption",
        ("reward", "corner", str(clip), "--prompt", "a", "--prompt", "b", "--device", "cpu"): "2 prompts for 1 videos",
        ("route", "shor", "a"): "Did you mean 'short'?",
        ("route", "short", "@none.txt"): "no prompts file",
        ("route", "short", "--clips", "-1"): "--clips is -1; it must be at least 1",
    }
    for arguments, sentence in cases.items():
        assert try_(*arguments) == 2, arguments
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1, error


def test_panels_have_videos_below_titles():
    """Every video keeps its pixels at its place; heat runs from black to white."""
    black, white = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    sheet = side_by_side([[black, white], [white, black]], ["a", "b"], enlarge=2)

    assert sheet.shape == (2, 3, TITLE + 2 * (8 + GAP), 16 + GAP)
    assert sheet[:, :, TITLE : TITLE + 8, :8].max() == 0
    assert sheet[:, :, TITLE + 8 + GAP : TITLE + 16 + GAP, 8 + GAP :].max() == 0
    assert torch.equal(heat(torch.tensor([[[0.0, 0.5, 1.0]]]), 1.0)[0, :, 0].T.sum(1), torch.tensor([0.0, 1.5, 3.0]))


def test_trials_are_printed_as_json(tmp_path, clip, capsys):
    """With --json, standard output is one JSON object: that of the file, or the decisions of a route."""
    assert try_("energy", "still", *TOY, "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(
        (tmp_path / "trials" / "still" / "energy.json").read_text()
    )
    assert try_("reward", "corner", str(clip), "--device", "cpu", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "trials" / "corner" / "reward.json").read_text())
    assert try_("route", "short", "a star", "--rewards", "corner", "--json") == 0
    (caption,) = json.loads(capsys.readouterr().out)["captions"]
    assert caption["caption"] == "a star" and caption["rewards"]["corner"]["tokens"] == 2


def test_the_reference_of_a_trial_is_inverted_once(clip, monkeypatch, capsys):
    """The guided call and the one without guidance share the inversion of their reference."""
    from guidedcd.energies import inversion

    calls, invert = [], inversion.invert
    monkeypatch.setattr(inversion, "invert", lambda *args: calls.append(args) or invert(*args))
    options = ("--reference", str(clip), "--prompt", "a star", "--energies.toy.relative", "0.5")

    assert try_("energy", "toy", *TOY, *options, "--energies.toy.reference", "inversion") == 0
    assert len(calls) == 1
