"""Preprocessing at VideoCrafter2's size: motion-guided samples per GPU-hour, and what a score takes.

    python benchmarks/preprocessing.py --out preprocessing.json                 # one GPU, four minutes
    python benchmarks/preprocessing.py --fast blocks --budget 500               # compiled layers only
    python benchmarks/preprocessing.py --tiny                                   # a CPU, tiny networks

Weights and videos are random. There are 200 solver steps, and every sample is in the guided half of them, as in the
released code. The parts of a sample are measured and added up with the number of passes that the schedule needs for a
shard of 64 videos, idle rows included. Whole shards follow while there is time.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import harness  # first: it finds guidedcd where that is not installed
import networks
import numpy
import torch
from guidedcd_pta import PTAConfig
from guidedcd_pta.energy import PTA
from harness import time_calls

from guidedcd.acceleration.apply import accelerated
from guidedcd.acceleration.garbage import settled
from guidedcd.config.kinds import Chosen
from guidedcd.config.run import Run
from guidedcd.config.sections import Preprocess, Solver
from guidedcd.data.clips import Clip
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.energies import inversion
from guidedcd.models.teachers.latent import LatentTeacher
from guidedcd.plugins.configs import DatasetConfig, TeacherConfig
from guidedcd.preprocessing import shard_files
from guidedcd.preprocessing.shard_builder import ShardBuilder
from guidedcd.preprocessing.shard_jobs import DrawJob


class EnergyRun(Run):
    """A run whose energy needs no plugin registry."""

    def build(self, kind: str, registry: Any = None) -> dict[str, Any]:
        """The energies, and nothing else."""
        return {name: PTA(config) for name, config in self.energies.items()} if kind == "energy" else {}


class GuidedShardBuilder(ShardBuilder):
    """All draws in the guided part of the grid, stratified over it."""

    def jobs(self, seeds: Sequence[int]) -> list[DrawJob]:
        """Every (video, draw)."""
        draws, count = self.run.preprocess.draws_per_video, self.run.solver.steps - self.first
        jobs = []
        for video, seed in enumerate(seeds):
            u = numpy.random.Generator(numpy.random.Philox(key=[seed, 1])).random(draws)
            indices = [self.first + min(int((d + u[d]) * count / draws), count - 1) for d in range(draws)]
            jobs += [DrawJob(video=video, draw=d, index=index, scored=True) for d, index in enumerate(indices)]
        return jobs


def energy_run(options: argparse.Namespace, fast: str, reference: str, draws: int) -> EnergyRun:
    """The run of the profile `t2v-turbo-v2`."""
    settings = Preprocess(
        draws_per_video=draws,
        batch_size=options.batch,
        dtype="float16",
        recompute=options.recompute,
        fast=fast,
        precision="no",  # the network has bfloat16 weights already
    )
    return EnergyRun(
        teacher=Chosen("random", TeacherConfig()),
        data=(Chosen("random", DatasetConfig()),),
        energies={"pta": PTAConfig(reference=reference)},
        solver=Solver(steps=options.steps),
        preprocess=settings,
    )


def clips(count: int, teacher: LatentTeacher) -> list[Clip]:
    """Random videos."""
    noise = torch.rand(teacher.geometry.pixel_shape, generator=torch.Generator().manual_seed(0))
    return [Clip(id=f"v/{i}", dataset="v", caption="c" * (i + 1), video=noise.roll(i, 0)) for i in range(count)]


def inversion_rows(options: argparse.Namespace, draws: int, videos: int = 64) -> tuple[float, float]:
    """(rows of inversion, rows that its passes have room for) per video, from the schedule itself."""
    blank = SimpleNamespace(schedule=NoiseSchedule.scaled_linear(), device=torch.device("cpu"))
    blank.net = lambda z, t, cond: torch.zeros_like(z)
    builder = GuidedShardBuilder(energy_run(options, "no", "inversion", draws), blank)
    indices: list[set[int]] = [set() for _ in range(videos)]
    for job in builder.jobs(range(videos)):
        indices[job.video].add(job.index)
    z0 = torch.zeros(videos, 1, 1, 1, 1)
    steps = inversion.inversion_passes(blank, z0, {}, options.steps, indices, builder.rows)
    sizes = [len(step.videos) for step in steps]
    return sum(sizes) / videos, len(sizes) * builder.rows / videos


class PreprocessingBenchmark:
    """One setting of `--preprocess.fast`."""

    def __init__(
        self, options: argparse.Namespace, recorder: harness.Recorder, teacher: LatentTeacher, fast: str
    ) -> None:
        self.options, self.recorder, self.teacher, self.fast = options, recorder, teacher, fast
        self.device = options.device
        self.seconds: dict[str, float] = {}

    def attempt(self, name: str, measure: Callable[[], None]) -> None:
        """Measure what --only selects, as a row of this setting."""
        name = f"{name}, {self.fast}"
        if harness.selected(name, self.options.only):
            self.recorder.attempt(name, measure)

    def builder(self, teacher: LatentTeacher, reference: str) -> GuidedShardBuilder:
        """The builder of shards that preprocessing uses."""
        return GuidedShardBuilder(energy_run(self.options, self.fast, reference, 1), teacher)

    def part(self, name: str, call: Callable[[], Any], rows: int) -> None:
        """Measure a part of a sample, which computes several rows."""
        timing = time_calls(call, self.device, repeats=self.options.repeats, warm_up=self.options.warm_up)
        self.seconds[name] = timing.median / rows
        self.recorder.add(f"{name}, {self.fast}", timing.values(per=rows), rows=rows)

    def measure(self) -> None:
        """All parts, and a figure as soon as its parts are known."""
        settings = energy_run(self.options, self.fast, "inversion", 1).preprocess
        with accelerated(self.teacher, fast=settings.fast, precision=settings.precision, in_place=True) as teacher:
            self.attempt("score and prediction", lambda: self.score(teacher))
            self.attempt("single-step reference", lambda: self.single_step(teacher))
            self.attempt("one draw per video", lambda: self.inversion(teacher))
            self.attempt("eight draws per video", lambda: self.throughput("eight draws per video", 8))

    def score(self, teacher: LatentTeacher) -> None:
        """The reference's pass, the prediction, and the gradient, `batch` samples with gradient at once."""
        batch = self.options.batch
        builder = self.builder(teacher, "single-step")
        z, t, prompt = networks.inputs(batch, self.device, torch.float32, self.options.tiny)
        text, references = {"prompt_embeds": prompt}, {"single-step": (z.flip(-1), t)}
        captions = [""] * batch

        def call() -> Any:
            return list(builder.scores(z, t, text, captions, references, batch))

        ((_, prediction, scores),) = call()
        if not torch.isfinite(prediction).all() or not scores["pta"].flatten(1).any(1).all():
            raise ArithmeticError("a prediction is not finite, or a score is zero")
        self.part("score and prediction", call, batch)

    def single_step(self, teacher: LatentTeacher) -> None:
        """Samples whose reference is one step: the VAE, and noise, three passes, a gradient, copies to the CPU."""
        builder = self.builder(teacher, "single-step")
        rows, batch = builder.rows, self.options.batch
        opened = builder.shard_jobs(clips(rows, teacher))
        eps, other = (torch.randn(rows, *teacher.geometry.latent_shape) for _ in range(2))
        self.part("guided draw", lambda: builder.scored_draws(opened, list(range(rows)), eps, other, {}), rows)
        videos = torch.stack([clip.video for clip in clips(batch, teacher)]).to(self.device)
        with torch.no_grad():
            self.part("encode", lambda: teacher.encode(videos), batch)
        self.throughput("single-step reference", 0)

    def inversion(self, teacher: LatentTeacher) -> None:
        """Samples whose reference is inverted: one step of as many videos as a pass has rows."""
        builder = self.builder(teacher, "inversion")
        rows, steps = builder.rows, self.options.steps
        z, _, prompt = networks.inputs(rows, self.device, torch.float32, self.options.tiny)
        passes = inversion.inversion_passes(teacher, z, {"prompt_embeds": prompt}, steps, [{steps - 1}] * rows, rows)
        self.part("inversion step", lambda: next(passes), rows)
        self.throughput("one draw per video", 1)

    def throughput(self, name: str, draws: int) -> None:
        """Samples per hour from the parts; without draws, of the single-step reference."""
        needed = ("guided draw", "encode", *(("inversion step",) if draws else ()))
        if missing := [part for part in needed if part not in self.seconds]:
            raise ValueError(f"{', '.join(missing)} was not measured")
        rows, room = inversion_rows(self.options, draws) if draws else (0.0, 0.0)
        per_video = self.seconds["encode"] + room * self.seconds.get("inversion step", 0.0)
        seconds = self.seconds["guided draw"] + per_video / max(draws, 1)
        values = {"samples_per_hour": 3600 / seconds, "seconds": seconds}
        self.recorder.add(f"{name}, {self.fast}", values, rows_of_inversion=rows, with_idle_rows=room)

    def shard(self, reference: str, videos: int, draws: int) -> None:
        """A whole shard, from clips to file, once."""
        name = f"whole shard, {reference}, {videos} videos, {draws} draws each"
        run = energy_run(self.options, self.fast, reference, draws)
        expected = videos * draws * self.seconds.get("guided draw", 0.3)
        if reference == "inversion":
            expected += videos * self.options.steps * self.seconds.get("inversion step", 0.06)

        def measure() -> None:
            if self.recorder.seconds + expected > self.options.budget + 30:
                raise TimeoutError(f"not measured: it would take {expected:.0f} s")
            fast, precision = run.preprocess.fast, run.preprocess.precision
            with accelerated(self.teacher, fast=fast, precision=precision, in_place=True) as teacher:
                builder, dataset = GuidedShardBuilder(run, teacher), clips(videos, teacher)
                timing = time_calls(lambda: save(builder, dataset), self.device, repeats=1, warm_up=0)
            per_hour = videos * draws / timing.median * 3600
            self.recorder.add(f"{name}, {self.fast}", {"samples_per_hour": per_hour, **timing.values()})

        self.attempt(name, measure)


def save(builder: GuidedShardBuilder, dataset: list[Clip]) -> None:
    """Build a shard and write it to a temporary folder."""
    samples, tensors = builder.shard(dataset, lambda share: None)
    with tempfile.TemporaryDirectory() as folder:
        shard_files.save_shard(Path(folder), 0, samples, tensors, [])


def main() -> None:
    """Measure."""
    parser = harness.parser(__doc__, budget=200, repeats=5, warm_up=1)
    parser.add_argument("--fast", default="layers,blocks", help="comma-separated values of preprocess.fast; also: no")
    parser.add_argument("--recompute", default="cheap", choices=("nothing", "cheap", "most"))
    parser.add_argument("--batch", type=int, default=4, help="samples of a pass with gradient; passes without: twice")
    parser.add_argument("--steps", type=int, default=200, help="points of the solver's grid")
    parser.add_argument("--parts-only", action="store_true", help="build no whole shards at the end")
    options = parser.parse_args()
    if options.tiny:
        options.batch, options.steps, options.repeats = 1, min(options.steps, 8), 1
    recorder = harness.Recorder(options, "preprocessing")
    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    teacher = networks.teacher(options.device, dtype, options.tiny)
    for fast in options.fast.split(","):  # all of a setting before the next: compiling takes minutes
        benchmark = PreprocessingBenchmark(options, recorder, teacher, fast)
        with settled():  # as when a store is filled
            benchmark.measure()
        if not options.parts_only:
            benchmark.shard("single-step", 4 * options.batch, 1)
            benchmark.shard("inversion", 2 * options.batch, 2 if options.tiny else 8)


if __name__ == "__main__":
    main()
