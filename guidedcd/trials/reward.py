"""A reward tried on videos: its scores, and the size of its gradient over the pixels.

Legend: k chosen frames, H/W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import attrs
import torch
from torch import Tensor

from guidedcd.acceleration.precision import relative_error
from guidedcd.config.kinds import Chosen
from guidedcd.config.selection import Selection
from guidedcd.config.structure import unstructure
from guidedcd.config.trials import TrialConfig
from guidedcd.console import console, plain_table, print_table
from guidedcd.data.framing import read_unenlarged
from guidedcd.data.media import contact_sheet
from guidedcd.data.panels import heat
from guidedcd.data.prompts import as_prompts
from guidedcd.devices import blame_memory
from guidedcd.devices import device as find_device
from guidedcd.diffusion.randomness import reward_generator
from guidedcd.errors import GuidedCDError, shortened
from guidedcd.files import check_writable, path_name, write_json
from guidedcd.locks import locked
from guidedcd.plugins.configs import RewardConfig
from guidedcd.rewards.contract import build_reward, call, drawing
from guidedcd.rewards.latents import reads_latents
from guidedcd.rewards.scorer import frame_indices
from guidedcd.trials.teacher import ADVICE, omega_of, prompts_of, seeds_of, teacher_of


@attrs.frozen(kw_only=True, eq=False)
class ScoredVideo:
    """One video with its score and the gradient of the score."""

    name: str
    caption: str
    frames: Tensor
    """The frames that the reward received (k, 3, H, W)."""
    tokens: int
    """Tokens of the caption; a reward cannot read more than its `max_tokens`."""
    score: float
    gradient: Tensor
    """Norm over colours of the gradient of the score with respect to each pixel (k, H, W)."""

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pixels, as JSON values."""
        return {
            "video": self.name,
            "caption": self.caption,
            "tokens": self.tokens,
            "score": self.score,
            "gradient": float(self.gradient.square().mean().sqrt()),
        }


def try_reward(
    selection: Selection,
    videos: Sequence[Path] = (),
    *,
    prompts: Sequence[str] | Path | None = None,
    out: Path | None = None,
    config: TrialConfig | None = None,
) -> list[ScoredVideo]:
    """Score videos with a reward, print the scores, and draw the size of the gradient over the pixels.

    Args:
        selection: One reward with its options, and the teacher that samples where no video is given.
        videos: Video files.
        prompts: Their captions, one for all or one for each; by default the prompts in their metadata. Without videos,
            what the teacher samples.
        out: The folder for reward.json and contact_sheet.png; by default trials/NAME.
        config: Steps and seeds of the sampling, and the device.

    Raises:
        GuidedCDError: A file or caption is missing, or the reward gives no score or no gradient.
    """
    config = config or TrialConfig()
    chosen = selection.one("reward")
    out = Path("trials") / path_name(chosen.name) if out is None else Path(out)
    check_writable(out)
    where = find_device(config.device)
    with blame_memory(f"reward '{chosen.name}'"):
        reward, plain = (None if one is None else build_reward(one).to(where) for one in (chosen, _plain(chosen)))
    if reads_latents(reward):
        raise GuidedCDError(
            f"{chosen.component()} reads the student's predicted latents, which a video file does not have. Train with "
            "it for some steps, and read its values in the log."
        )
    inputs = _videos(selection, videos, prompts, config)

    def graded(module: Any) -> list[_Graded]:
        return [_graded(chosen, module, n, text, video.to(where), fps, config.seed) for n, text, video, fps in inputs]

    results = graded(reward)
    scored = [_scored(reward, name, text, one) for (name, text, _, _), one in zip(inputs, results, strict=True)]
    rounding = {} if plain is None else {"rounding": _rounding(results, graded(plain))}
    with locked(out, "the folder"):
        largest = max(float(one.gradient.max()) for one in scored)
        rows = [image for one in scored for image in (one.frames, heat(one.gradient, largest))]
        captions = [text for one in scored for text in (_title(one), "gradient over the pixels above")]
        contact_sheet(out / "contact_sheet.png", rows, captions, size=128)
        write_json(out / "reward.json", described(selection, scored) | rounding)
    _print(chosen, reward, scored, out, **rounding)
    return scored


def described(selection: Selection, scored: Sequence[ScoredVideo]) -> dict[str, Any]:
    """The content of reward.json."""
    chosen = selection.one("reward")
    return {
        "reward": {chosen.name: unstructure(chosen.config)},
        "videos": [one.to_dict() for one in scored],
    }


def _videos(
    selection: Selection, videos: Sequence[Path], prompts: Sequence[str] | Path | None, config: TrialConfig
) -> list[tuple[str, str, Tensor, float]]:
    """Name, caption, pixels (F, 3, H, W) and frames per second of every video."""
    if not videos:
        pipeline = teacher_of(selection, config)
        texts = [prompt.text for prompt in prompts_of(pipeline, prompts, config.videos)]
        seeds = seeds_of(config, len(texts))
        sampled = pipeline.sample(
            texts,
            steps=config.steps,
            seeds=seeds,
            omega=omega_of(selection, config),
            guider=config.guider,
            advice=ADVICE,
        )
        fps, rows = pipeline.teacher.geometry.fps, zip(seeds, texts, sampled, strict=True)
        return [(f"seed {seed}", text, video, fps) for seed, text, video in rows]
    captions = [prompt.text for prompt in as_prompts(prompts)] if prompts else []
    if len(captions) not in (0, 1, len(videos)):
        raise GuidedCDError(f"{len(captions)} prompts for {len(videos)} videos: give one --prompt, or one for each.")
    captions = captions * len(videos) if len(captions) == 1 else captions
    result = []
    for number, path in enumerate(videos):
        video, fps, metadata = read_unenlarged(path)
        caption = captions[number] if captions else metadata.get("prompt")
        if caption is None:
            raise GuidedCDError(f"{path} has no prompt in its metadata: give its caption with --prompt.")
        result.append((str(path), caption, video, fps))
    return result


@attrs.frozen(eq=False)
class _Graded:
    """The score of frames (k, 3, H, W), and its gradient of the same shape."""

    frames: Tensor
    score: float
    gradient: Tensor


def _plain(chosen: Chosen) -> Chosen | None:
    """The reward without its option `quantize`; None if it does not use the option."""
    if getattr(chosen.config, "quantize", "no") == "no":
        return None
    return attrs.evolve(chosen, config=attrs.evolve(cast(RewardConfig, chosen.config), quantize="no"))


def _rounding(graded: Sequence[_Graded], exact: Sequence[_Graded]) -> dict[str, float]:
    """The largest difference of scores, and the relative error of all gradients, of a reward in int8."""
    pairs = list(zip(graded, exact, strict=True))
    gradients = [torch.cat([one.gradient.flatten() for one in side]) for side in (graded, exact)]
    return {"score": max(abs(a.score - b.score) for a, b in pairs), "gradient": relative_error(*gradients)}


def _graded(chosen: Chosen, reward: Any, name: str, caption: str, video: Tensor, fps: float, seed: int) -> _Graded:
    """One video's score and gradient."""
    # The components of the kind reward have configs that derive from RewardConfig.
    config, whose, generator = cast(RewardConfig, chosen.config), str(chosen.component()), reward_generator(seed, 0)
    pixels = video[frame_indices(config, len(video), generator, fps=fps)][None].detach()
    frames = pixels.requires_grad_(True) * 1  # no leaf, so that a change in place is found
    with blame_memory(whose, f"Use fewer --rewards.{chosen.name}.frames."), torch.enable_grad():
        with drawing(reward, generator):
            scores = call(reward, frames, [caption], whose)
        if not scores.requires_grad:
            raise GuidedCDError(f"{whose} gives scores without a gradient: something detached them from the frames.")
        (gradient,) = torch.autograd.grad(scores.sum(), frames)
    if not (scores.isfinite().all() and gradient.isfinite().all()):
        raise GuidedCDError(f"{whose} gave {float(scores.detach()):g} for {name}; score and gradient must be finite.")
    return _Graded(frames[0].detach().cpu(), float(scores.detach()), gradient[0].cpu())


def _scored(reward: Any, name: str, caption: str, one: _Graded) -> ScoredVideo:
    return ScoredVideo(
        name=name,
        caption=caption,
        frames=one.frames,
        tokens=int(reward.count_tokens(caption)),
        score=one.score,
        gradient=one.gradient.norm(dim=1),
    )


def _title(one: ScoredVideo) -> str:
    return f"{one.score:.4g}: {one.caption}"


def _print(
    chosen: Chosen,
    reward: Any,
    scored: Sequence[ScoredVideo],
    out: Path,
    rounding: dict[str, float] | None = None,
) -> None:
    counts = [len(one.frames) for one in scored]
    fewest, most = min(counts), max(counts)
    number = f"{most}" if fewest == most else f"{fewest} to {most}"
    console.print(f"reward   {chosen.name}: {number} frames of each video", markup=False)
    numbers = ("score", "gradient (rms)", "tokens")
    table = plain_table("video", *numbers, "caption", numbers=numbers)
    for one in scored:
        gradient = float(one.gradient.square().mean().sqrt())
        table.add_row(one.name, f"{one.score:.4g}", f"{gradient:.3g}", str(one.tokens), shortened(one.caption, 80))
    print_table(table)
    if rounding:
        errors = f"scores by {rounding['score']:.2g} at most, gradients by {rounding['gradient']:.2%} of their size"
        console.print(f"weights  int8 changes {errors}")
    if long := sum(one.tokens > reward.max_tokens for one in scored):
        console.print(
            f"note     {long} of {len(scored)} captions have more than the {reward.max_tokens} tokens that it reads"
        )
    console.print(f"wrote    {out}: contact_sheet.png, reward.json", markup=False)
