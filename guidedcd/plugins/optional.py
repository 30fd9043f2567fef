"""Attributes and options that a component may have besides what its kind requires. No torch.

The engine looks each of them up by name, so a misspelt one would have no effect. The conformance checks report it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import attrs

from guidedcd.plugins.registry import CONFIGS

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class OptionalTeacher(Protocol):
    """Optional attributes of a teacher."""

    vae: nn.Module
    """The decoder of latents, which training moves to its own precision."""
    text: nn.Module
    """The text encoder, which leaves the device's memory if training embeds no prompts."""
    tails: bool
    """Whether `seen` accepts `tail` and `recompute`, as `LatentTeacher.seen` does."""
    base_model: str
    """Name of the released model, for the model card of an exported student."""
    arch: Any
    """Sizes of the original network (`arch.unet`), for exports in the layout of T2V-Turbo."""
    fps: int
    """Frame rate that is folded into the network's weights, in frames per second."""
    fps_weights: Mapping[str, Tensor]
    """Weights of the frame-rate embedding that were folded, by their original keys."""
    time_embedding: str
    """Name of the denoiser's module to whose output a student's guidance inputs are added, for every network but
    a UNet, whose time embedding takes them as `cond_proj`."""
    blocks: Sequence[str]
    """Names of the classes of the denoiser's repeated blocks, whose activations training may compute again."""
    adapter_targets: str
    """Regular expression of the names of the layers that get adapters; by default every layer gets one."""

    decoded_frames: int
    """The number of first frames from which `decode(z, frames)` can choose; all by default."""
    policy: Any
    """What `decode(z, frames)` decodes, a `guidedcd.plugins.decode_policies.DecodePolicy`, for the table of plans."""

    noise_range: tuple[float, float]
    """The part of the solver's grid, as two fractions of it, at which `network` predicts; elsewhere the teacher has
    another network."""

    def scaled(self, z: Tensor) -> Tensor:
        """Latents as `encode` returns them, of the autoencoder's own (B, C, F, h, w); for clips that have latents."""

    def conditioning(self, prompt_embeds: Sequence[Tensor]) -> dict[str, Tensor]:
        """What `embed` returns, of captions whose own tokens were embedded already (L, D) each; for such clips."""

    def resized(self, geometry: Any) -> Any:
        """This teacher for videos of another `guidedcd.Geometry`, sharing its networks; for `--preprocess.buckets`."""

    def sampler(self, steps: int) -> Any:
        """The sampler of the model's own pipeline: a `guidedcd.models.teachers.scheduler_sampler.SchedulerSampler`."""

    def decode_exactly(self, z: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        """Pixels as the autoencoder decodes them, if `decode(z, frames)` computes an approximation of them."""

    def decode_recomputing(self, z: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        """As `decode`, with less memory: its activations are computed again in the backward pass."""

    def prompts(self, split: str, count: int) -> Sequence[Any]:
        """The first `count` evaluation prompts of the split "motion" or "no-motion"."""

    def training_prompts(self, count: int) -> Iterable[Any]:
        """The first `count` prompts for videos that the student generates during training."""

    def add_lora(self, path: str, network: nn.Module | None = None) -> None:
        """Add a LoRA file to the weights of `network`, a copy of the denoiser; without one, only check that it fits."""

    lora_pipeline: str
    """Name of diffusers' pipeline whose loader reads the first file of `save_lora`."""

    def save_lora(
        self, folder: Path, pairs: Mapping[str, tuple[Tensor, Tensor]], biases: Mapping[str, Tensor], steps: int
    ) -> tuple[str, ...]:
        """Write LoRA files of (up, down) by layer and changes of biases, and return their names."""

    def card(self) -> Sequence[Mapping[str, Any]]:
        """Rows of published scores: label, steps, evaluations, omega, solver, scores."""


class OptionalTextEncoder(Protocol):
    """Optional attributes of a teacher's `text`."""

    def save_tokenizer(self, folder: Path) -> str:
        """Write the tokenizer's files for transformers into `folder`, and return the name of its class."""


class OptionalEnergy(Protocol):
    """Optional attributes of an energy."""

    records_only: bool
    """Whether the energy reads recorded activations only, and no prediction."""
    reference_free: bool
    """Whether the energy compares with nothing; its second argument is None then, and no reference is computed."""

    through: Literal["network", "output"]
    """What the gradient passes through: the "network" (the default), or the "output" alone, whose energy reads the
    predicted clean latents `x0` and `guided`. It is computed in the training step, and nothing of it is stored."""
    reads_motion: bool
    """Whether the value depends on the order of frames, which the conformance checks then test."""

    def keep(self, reference: Any) -> Any:
        """Reduce a reference to what the energy reads, which is then its second argument."""

    def check_run(self, run: Any) -> None:
        """As that of a reward."""


class OptionalReward(Protocol):
    """Optional attributes of a reward."""

    reads: Literal["frames", "latents"]
    """What the reward receives: decoded "frames" (the default), or the student's predicted "latents" before they are
    decoded. It is then called as reward(seen, captions, reference): `seen` is a `guidedcd.Seen` of the prediction."""
    reference: Literal["prediction", "clean"] | None
    """With `reads = "latents"`, the `Seen` that is the third argument: the teacher's "prediction" at the same noise
    level, the "clean" latents of the clip, or None. Videos that the student samples itself have neither; a reward with
    a reference does not score them."""
    generator: torch.Generator | None
    """Source of random preparation of the frames; the engine sets it for each training step."""
    reads_motion: bool
    """Whether the value depends on the order of frames, which the conformance checks then test."""

    @staticmethod
    def tokens(config: Any) -> Any:
        """The tokenizer alone (`max_tokens`, `count(text)`), without the network."""

    def use_graphs(self) -> None:
        """Replay the reward's network as a CUDA graph from now on."""

    def check_run(self, run: Any) -> None:
        """Raise GuidedCDError if the component does not fit the `guidedcd.Run`; called before the store is computed."""


class OptionalRoute(Protocol):
    """Optional attributes of a route."""

    @staticmethod
    def together(rules: Sequence[Any]) -> Any:
        """One rule in place of several of this class, which a run has under several values: `dataset:a,dataset:b`."""

    def check_run(self, run: Any) -> None:
        """As that of a reward."""


class OptionalDataset(Protocol):
    """Optional attributes of a dataset."""

    encoded: bool
    """Whether its clips have `latents` and `prompt_embeds`, so that neither VAE nor text encoder runs for them."""

    def fingerprint(self) -> str:
        """A text that changes when the clips do, such as a digest of file names, sizes and times; cheap to compute."""


class OptionalClips(Protocol):
    """Optional attributes of the sequence that a dataset's `open` returns."""

    def sample(self, index: int) -> Any:
        """The `guidedcd.Sample` of clip `index`, with the metadata of the clip, read without its video."""

    def size(self, index: int) -> Any:
        """The `guidedcd.ClipSize` of a clip, cheaply; for runs whose clips fall into buckets of several sizes."""


class OptionalMetric(Protocol):
    """Optional attributes of a metric."""

    titles: Mapping[str, str]
    """Heading of each value in tables, by key."""
    better: Mapping[str, str]
    """Whether a "higher" or a "lower" value is better, by key."""
    headline: str
    """Key of the value that summaries show."""
    headlines: Sequence[str]
    """Keys of further values that summaries show, in order."""

    def applies(self, prompt: Any) -> bool:
        """Whether the metric can judge a video of this prompt."""

    def features(self, videos: Tensor) -> Tensor:
        """Numbers (B, D) that describe each video, which `across` compares."""

    def across(self, features: Tensor) -> Mapping[str, Tensor]:
        """Values (S, P) by name, of the features (S, P, D) of P prompts with S seeds; they replace those of calls."""


class OptionalTeacherConfig(Protocol):
    """Optional options of a teacher; with all four, `data inspect` does not load the network."""

    frames: int
    height: int
    width: int
    fps: float


class OptionalMetricConfig(Protocol):
    """Optional options of a metric."""

    fps: float
    """Frames per second of the videos, which an evaluation sets."""


ATTRIBUTES: dict[str, type] = {
    "energy": OptionalEnergy,
    "reward": OptionalReward,
    "route": OptionalRoute,
    "teacher": OptionalTeacher,
    "text encoder": OptionalTextEncoder,
    "dataset": OptionalDataset,
    "clips": OptionalClips,
    "metric": OptionalMetric,
}
"""The optional attributes by kind of component, and those of a teacher's text encoder and of a dataset's clips."""

OPTIONS: dict[str, type] = {"teacher": OptionalTeacherConfig, "metric": OptionalMetricConfig}
"""The optional options by kind of component."""

_LIBRARIES = ("guidedcd", "torch", "builtins")


def names(kind: str, protocols: Mapping[str, type] = ATTRIBUTES) -> tuple[str, ...]:
    """Names of the optional attributes of one kind, or with `OPTIONS` of its optional options."""
    protocol = protocols.get(kind)
    if protocol is None:
        return ()
    members = dict.fromkeys([*protocol.__annotations__, *vars(protocol)])
    return tuple(name for name in members if not name.startswith("_"))


def misspelt_attributes(kind: str, component: Any) -> dict[str, str]:
    """Public attributes that nearly match an optional one that is absent, each with the right name.

    Attributes of the class, of the object and, in a network, its submodules count; those that the base classes of
    guidedcd and of torch define do not.
    """
    classes = type(component).__mro__
    libraries = [cls for cls in classes if cls.__module__.split(".")[0] in _LIBRARIES]
    inherited = {name for cls in libraries for name in vars(cls)}
    instance = getattr(component, "__dict__", {})
    attributes = {name for cls in classes if cls not in libraries for name in vars(cls)}
    attributes |= {*instance, *instance.get("_modules", ())}
    optional = set(names(kind))
    return _near(attributes - inherited - optional, optional - attributes)


def misspelt_options(kind: str, config: type) -> dict[str, str]:
    """Options that nearly match one of the kind's base class or an absent optional one, each with the right name.

    A plural is an option of its own: a reward's `weights` may be a file, whatever `weight` is.
    """
    base = {field.name for field in attrs.fields(CONFIGS[kind])}
    own = {field.name for field in attrs.fields(config)} - base
    candidates = base | (set(names(kind, OPTIONS)) - own)
    return _near(own - {name + "s" for name in candidates}, candidates)


def _near(attributes: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """By public attribute that nearly matches one of `names`, without being one, that name."""
    matches = {
        attribute: difflib.get_close_matches(attribute, names, n=1, cutoff=0.8)
        for attribute in sorted(set(attributes) - set(names))
        if not attribute.startswith("_")
    }
    return {attribute: match[0] for attribute, match in matches.items() if match}
