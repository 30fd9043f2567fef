"""Frozen attrs classes of a run: flags, TOML keys and Python attributes have the same paths. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from attrs.validators import ge, gt, in_, optional

from guidedcd.config.bucket import are_buckets
from guidedcd.config.rollouts import RolloutsConfig
from guidedcd.config.sentinel import SentinelConfig
from guidedcd.config.validators import (
    LARGEST_BATCH,
    MOST_PROMPTS,
    MOST_STEPS,
    are_seeds,
    are_strengths,
    is_count_or_prompts,
    is_subrange,
)
from guidedcd.devices import DTYPES, FAST, QUANTIZE
from guidedcd.docstrings import documented
from guidedcd.errors import GuidedCDError
from guidedcd.plugins.configs import _ascending, _between

if TYPE_CHECKING:
    from guidedcd.diffusion.guiders import Guider

MOST_SHARDS = 10**6
"""Shards of a store, two files each in one folder."""


@documented
@attrs.frozen(kw_only=True, slots=False)
class GuiderConfig:
    """How the teacher's predictions with and without the caption become one."""

    cfg: str = attrs.field(default="plain", validator=in_(("plain", "apg", "cfg-zero")))
    """Classifier-free guidance: `plain`, or diffusers' adaptive projected guidance (apg) or CFG-Zero* (cfg-zero)."""
    apg_eta: float = attrs.field(default=0.0, validator=ge(0))
    """Factor of the part of the guidance that is parallel to the prediction; only where `cfg` is apg. 1 keeps it."""
    apg_rescale: float = attrs.field(default=0.0, validator=ge(0))
    """Largest norm of the difference of both predictions, over all latents of a video; only where `cfg` is apg. 0 for
    no limit."""

    @property
    def guider(self) -> Guider:
        """The function of both predictions."""
        from guidedcd.diffusion.guiders import Guider

        return Guider(self.cfg, self.apg_eta, self.apg_rescale)


@documented
@attrs.frozen(kw_only=True, slots=False)  # without slots it can be one of several base classes
class GuidanceRule:
    """How the gradient of an energy enters a solver step."""

    rule: str = attrs.field(default="official", validator=in_(("official", "eps", "paper-literal")))
    """Where the energy's gradient is added: to the DDIM direction term (official), to eps (Eq. 2, eps), or to z (Eq. 8,
    paper-literal)."""
    noise_factor: str = attrs.field(default="official", validator=in_(("official", "sqrt-one-minus")))
    """Factor of the energy's gradient by noise level: sqrt(1 - sqrt(alphas_cumprod)), as in the released code
    (official), or sqrt(1 - alphas_cumprod) (sqrt-one-minus)."""


@documented
@attrs.frozen(kw_only=True)
class Solver(GuidanceRule, GuiderConfig):
    """The teacher's ODE grid, and how a step on it is guided."""

    steps: int = attrs.field(default=50, validator=_between(2, 1000))
    """Number N of points of the DDIM grid, t_i = (i + 1) * (1000 // N) - 1; a training pair spans one step of it."""
    omega: tuple[float, float] = attrs.field(default=(5.0, 15.0), validator=_ascending)
    """Range of the guidance strength omega in c + omega (c - u); the guidance_scale of diffusers is omega + 1."""


@documented
@attrs.frozen(kw_only=True)
class Preprocess:
    """The latent store, which is computed once with the frozen teacher."""

    videos: int = attrs.field(default=32, validator=_between(1, 10**9))
    """Number of videos drawn from the mixture of datasets."""
    draws_per_video: int = attrs.field(default=8, validator=_between(1, 10_000))
    """Noise draws (step index and noise) per video; all share one inversion trajectory."""
    noise_range: tuple[float, float] = attrs.field(default=(0.0, 1.0), validator=is_subrange)
    """Part of the DDIM grid from which noise levels are drawn: 0 is its cleanest end, 1 its noisiest. Near pure noise,
    neither a solver step nor a reward carries information about the clip."""
    fraction: float = attrs.field(default=0.5, validator=_between(0, 1))
    """Noisiest fraction of the DDIM grid for which energy gradients are computed; no energy's `fraction` may exceed
    it."""
    batch_size: int = attrs.field(default=4, validator=_between(1, LARGEST_BATCH))
    """Samples per forward pass with gradient; passes without gradient have twice as many."""
    precision: str = attrs.field(default="no", validator=in_(("no", "bf16")))
    """Precision of the network: bf16 for GPUs; latents, tables and the grid's arithmetic stay float32."""
    quantize: str = attrs.field(default="no", validator=in_(QUANTIZE))
    """Keep the network's weights in int8, half the memory of bf16. Preprocessing prints the error of predictions."""
    fast: str = attrs.field(default="auto", validator=in_(("auto", "no", "layers", "blocks", "blocks-tuned")))
    """Faster paths through a 3D UNet or a transformer: layers are fused; blocks are also compiled; blocks-tuned is also
    tuned, which takes minutes. auto is layers on GPUs, else no."""
    flash_attention: str | None = attrs.field(default=None, validator=optional(in_(("FA4",))))
    """Compare a separately installed FlashAttention with PyTorch's own kernels, and use it where it is faster: FA4."""
    recompute: str = attrs.field(default="nothing", validator=in_(("nothing", "cheap", "most")))
    """Activations that are recomputed for energy gradients: of a UNet, cheap needs a third of the memory and takes a
    third of a forward pass longer; of a transformer, most keeps the inputs of blocks alone."""
    shard_size: int = attrs.field(default=8, validator=_between(1, 10**6))
    """Videos per shard; a finished shard is never computed again."""
    buckets: tuple[str, ...] = attrs.field(default=(), validator=are_buckets)
    """Sizes of the training videos, FRAMESxHEIGHTxWIDTH joined by commas, such as 33x256x448,17x448x256. A clip falls
    into the nearest one, and a batch has clips of one. None: the size of the teacher's videos."""
    max_skipped: float = attrs.field(default=0.1, validator=_between(0, 1))
    """Stop when more than this fraction of the clips cannot be read; skipped clips are listed with the reason."""
    dtype: str = attrs.field(default="float32", validator=in_(DTYPES))
    """Data type of stored predictions and energy gradients; clean latents stay float32."""
    keep_inversions: bool = True
    """Store the DDIM inversions, so that a new or edited energy takes the passes of its own scores only. They take as
    much space as one energy's scores."""

    def __attrs_post_init__(self) -> None:
        if (shards := -(-self.videos // self.shard_size)) > MOST_SHARDS:
            raise GuidedCDError(
                f"--preprocess.videos {self.videos} with --preprocess.shard-size {self.shard_size} gives {shards:,} "
                f"shards; a store has at most {MOST_SHARDS:,}. Raise --preprocess.shard-size."
            )


@documented
@attrs.frozen(kw_only=True)
class Student:
    """The network that is trained, and what of it."""

    kind: str = attrs.field(default="full", validator=in_(("full", "lora")))
    """Train every weight, or low-rank adapters through peft."""
    rank: int = attrs.field(default=64, validator=_between(1, 100_000))
    """Rank of the adapters; only where `kind` is lora."""
    dropout: float = attrs.field(default=0.0, validator=_between(0, 0.99))
    """Dropout of the temporal convolutions while training; the official run has 0.1."""
    ema: float | None = attrs.field(default=None, validator=optional(_between(0, 1)))
    """Decay of an averaged target network, which is saved as the student; by default the target is the student
    itself."""
    init: str = ""
    """LoRA file that is added to the copy of the teacher before training, such as a published few-step LoRA; a student
    of kind lora needs the file whenever it is loaded."""


@documented
@attrs.frozen(kw_only=True)
class OptimizerConfig:
    """The optimiser's update."""

    name: str = attrs.field(default="adamw", validator=in_(("adamw", "adamw-8bit")))
    """AdamW with states in float32, or in 8 bits through bitsandbytes: a quarter of their memory."""
    lr: float = attrs.field(default=1e-5, validator=gt(0))
    """Learning rate of AdamW."""
    weight_decay: float = attrs.field(default=0.0, validator=ge(0))
    """Weight decay of AdamW."""
    max_grad_norm: float = attrs.field(default=1.0, validator=gt(0))
    """Gradients are clipped to this norm."""


@documented
@attrs.frozen(kw_only=True)
class LrScheduleConfig:
    """How the learning rate changes during training."""

    warmup: int = attrs.field(default=0, validator=_between(0, MOST_STEPS))
    """Number of first steps, over which the learning rate rises linearly to its full value."""
    cooldown: int = attrs.field(default=0, validator=_between(0, MOST_STEPS))
    """Number of last steps, over which the learning rate falls linearly to 0."""


@documented
@attrs.frozen(kw_only=True)
class ActivationCheckpointConfig:
    """Activations that the backward pass computes again: less memory for more time."""

    layers: str = attrs.field(default="none", validator=in_(("none", "all", "most", "temporal")))
    """Layers of the student that are recomputed: none; all, for about a third more time; most, which is all but the
    residual blocks; or only the temporal ones. Of a transformer, most and temporal are all but the fused attention."""
    decoder: bool | None = None
    """Recompute frames decoded for rewards one by one; by default only where `layers` is all."""

    @property
    def recomputes_decoder(self) -> bool:
        """Whether frames decoded for rewards are recomputed: `decoder`, or its default."""
        return self.layers == "all" if self.decoder is None else self.decoder


@documented
@attrs.frozen(kw_only=True)
class ParallelConfig:
    """How several processes share a training."""

    mode: str = attrs.field(default="ddp", validator=in_(("ddp", "fsdp")))
    """Every process holds a copy of weights and optimiser (ddp), or a shard of them (fsdp), which needs less memory."""


@documented
@attrs.frozen(kw_only=True)
class CheckpointConfig:
    """Checkpoints, from which an interrupted run continues."""

    every: int = attrs.field(default=25, validator=_between(1, MOST_STEPS))
    """Steps between checkpoints."""


@documented
@attrs.frozen(kw_only=True)
class ValidationConfig:
    """Videos sampled during training, in the run's folder `validation`."""

    every: int | None = attrs.field(default=None, validator=optional(_between(1, MOST_STEPS)))
    """Steps between validations; none, the default, samples no videos."""
    prompts: int = attrs.field(default=2, validator=_between(1, MOST_PROMPTS))
    """Number of prompts of a validation, the first of the evaluation's; each gives one video."""


@documented
@attrs.frozen(kw_only=True)
class Train:
    """The optimisation."""

    steps: int = attrs.field(default=100, validator=_between(1, MOST_STEPS))
    """Number of optimiser steps."""
    batch_size: int = attrs.field(default=4, validator=_between(1, LARGEST_BATCH))
    """Samples per step and process."""
    accumulate: int = attrs.field(default=1, validator=_between(1, 10_000))
    """Batches per optimiser step."""
    precision: str = attrs.field(default="no", validator=in_(("no", "bf16", "fp16")))
    """Precision of the networks: bf16 keeps float32 masters in the optimiser; fp16 autocasts and scales the loss."""
    fast: str = attrs.field(default="auto", validator=in_((*FAST, "blocks-tuned")))
    """Faster paths through a 3D UNet or a transformer: layers are fused; with graphs, passes without gradient and
    rewards are also replayed as CUDA graphs, which need some memory; blocks are layers that are also compiled;
    blocks-graphs is both; blocks-tuned is also tuned, which takes minutes. auto is layers on GPUs, else no."""
    replay_rewards: bool | None = None
    """Replay rewards as CUDA graphs on a GPU, which keep the memory of their activations; by default as `fast` does."""
    flash_attention: str | None = attrs.field(default=None, validator=optional(in_(("FA4",))))
    """Compare a separately installed FlashAttention with PyTorch's own kernels, and use it where it is faster: FA4."""
    loss: str = attrs.field(default="huber", validator=in_(("huber", "l2")))
    """Distance of the consistency loss: pseudo-Huber or squared."""
    huber_c: float = attrs.field(default=0.001, validator=gt(0))
    """Constant c of the pseudo-Huber distance; only where `loss` is huber."""
    consistency_weight: float = attrs.field(default=1.0, validator=ge(0))
    """Weight of the consistency loss; with 0 the rewards alone train the student, and the loss is only logged."""
    guided_steps: int = attrs.field(default=0, validator=_between(0, MOST_STEPS))
    """Number of first steps, which also train on the teacher's guided prediction, with a weight that falls from 1
    to 0."""
    reward_batch: int | None = attrs.field(default=None, validator=optional(_between(1, LARGEST_BATCH)))
    """Largest number of samples of a batch that are decoded for rewards; by default all that are routed to one."""
    average: float | None = attrs.field(default=None, validator=optional(_between(0, 1)))
    """Decay of averaged weights, which are saved as the student; unlike with `student.ema`, the target of the
    consistency loss stays the student itself."""
    tracker: str = attrs.field(default="none", validator=in_(("none", "tensorboard", "wandb")))
    """Where the log also goes; log.jsonl is always written."""
    log_every: int = attrs.field(default=5, validator=_between(1, MOST_STEPS))
    """Steps between lines of the log."""
    optimizer: OptimizerConfig = attrs.field(factory=OptimizerConfig)
    lr_schedule: LrScheduleConfig = attrs.field(factory=LrScheduleConfig)
    activation_checkpoint: ActivationCheckpointConfig = attrs.field(factory=ActivationCheckpointConfig)
    parallel: ParallelConfig = attrs.field(factory=ParallelConfig)
    checkpoint: CheckpointConfig = attrs.field(factory=CheckpointConfig)
    validation: ValidationConfig = attrs.field(factory=ValidationConfig)
    rollouts: RolloutsConfig = attrs.field(factory=RolloutsConfig)
    sentinel: SentinelConfig = attrs.field(factory=SentinelConfig)


def _own_prompts(value: Any) -> Any:
    """A path without the "@" that marks a file of prompts."""
    return Path(str(value)[1:]).expanduser() if isinstance(value, Path) and str(value).startswith("@") else value


@documented
@attrs.frozen(kw_only=True)
class EvaluateConfig:
    """What an evaluation measures, on paired prompts and noise; `guidedcd evaluate` takes the same options."""

    prompts: int | Path | Sequence[Any] = attrs.field(default=48, converter=_own_prompts, validator=is_count_or_prompts)
    """How many prompts, or a file of prompts; student and teacher receive the same prompts and initial noise."""
    seeds: int | tuple[int, ...] = attrs.field(default=1, validator=are_seeds)
    """How many seeds per prompt, or the seeds themselves, such as 5,7; intervals are over prompts."""
    steps: int = attrs.field(default=4, validator=_between(1, 50))
    """Sampling steps of the student and of the few-step teacher."""
    omega: float = attrs.field(default=7.5, validator=ge(0))
    """Guidance strength of the student."""
    teacher_omega: tuple[float, ...] = attrs.field(default=(2.0,), validator=are_strengths)
    """Guidance strengths tried for the few-step teacher; the one that is best on other prompts is reported."""
    teacher_steps: int = attrs.field(default=50, validator=_between(1, 1000))
    """Sampling steps of the slow teacher, whose videos the report shows."""
    scale: float | dict[str, float] | None = None
    """Strength of the student's energy, within the range of its training; NAME=NUMBER where it has several."""
    videos: int = attrs.field(default=6, validator=_between(0, MOST_PROMPTS))
    """Videos shown in the report, also sampled with the teacher at `teacher_steps`; 0 shows none."""
    batch: int | None = attrs.field(default=None, validator=optional(_between(1, LARGEST_BATCH)))
    """Videos per forward pass; by default as many as fit."""
    dtype: str = attrs.field(default="float32", validator=in_(DTYPES))
    """Data type in which the networks compute."""
    fast: str = attrs.field(default="auto", validator=in_(FAST))
    """Faster paths through the networks: layers (fused), graphs, blocks (compiled), blocks-graphs (both); auto is
    layers on GPUs, else no."""

    @property
    def each_seed(self) -> tuple[int, ...]:
        """The seeds of every prompt."""
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    @property
    def few_steps(self) -> tuple[int, ...]:
        """Steps of the few-step teachers: those of the student, and those with its number of network calls."""
        return tuple(dict.fromkeys((self.steps, max(1, self.steps // 2))))

    def work(self, prompts: int, *, shown: int, choosing: int, solvers: int) -> tuple[int, int]:
        """Numbers of network calls and of videos of a whole evaluation.

        Args:
            prompts: Number of prompts.
            shown: Number of prompts whose videos the report shows.
            choosing: Number of other prompts on which the settings of the few-step teachers are chosen.
            solvers: Number of solvers that are tried.
        """

        def calls_of(steps: int, omega: float) -> int:
            return steps * (2 if omega else 1)  # with and without the caption

        measured = prompts * len(self.each_seed)
        calls, videos = measured * self.steps, measured
        for steps in self.few_steps:
            calls += measured * calls_of(steps, self.teacher_omega[0])
            videos += measured
            if choosing and solvers * len(self.teacher_omega) > 1:
                calls += choosing * solvers * sum(calls_of(steps, omega) for omega in self.teacher_omega)
                videos += choosing * solvers * len(self.teacher_omega)
        if self.teacher_steps not in self.few_steps:
            calls += shown * calls_of(self.teacher_steps, self.omega)
            videos += shown
        return calls, videos
