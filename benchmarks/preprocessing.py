"""Preprocessing at VideoCrafter2's size: motion-guided samples per GPU-hour, and what a score takes.

    python benchmarks/preprocessing.py --out preprocess.json                    # one GPU, four minutes
    python benchmarks/preprocessing.py --fast blocks --budget 500 --out ...     # compiled layers only, with more time
    python benchmarks/preprocessing.py --tiny                                   # any machine, seconds

Random weights and videos, 200 solver steps, every sample in the guided half of them, as officially.
The parts of a sample are measured (medians; a pass has as many rows as in a real store) and added up with the number
of passes that the schedule really needs for a shard of 64 videos, idle rows included. Lines are printed as they become
known; then, while there is time, whole shards are made for comparison, all of one setting before the next, for
compiling takes minutes. A part that fails is a line with its error, and so is one for which no time was left.
"""

from __future__ import annotations

import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bare  # also finds guidedcd where it is not installed
import numpy
import torch
from guidedcd_pta import PTAConfig
from guidedcd_pta.energy import PTA
from torch import Tensor

from guidedcd.acceleration.apply import accelerated
from guidedcd.acceleration.garbage import settled
from guidedcd.config.run import Chosen, Run
from guidedcd.config.sections import Preprocess, Solver
from guidedcd.data.clips import Clip
from guidedcd.data.geometry import Geometry
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.energies import inversion as references
from guidedcd.models.teachers.latent import LatentTeacher
from guidedcd.plugins.configs import DatasetConfig, TeacherConfig
from guidedcd.preprocessing import store
from guidedcd.preprocessing.shard_builder import ShardBuilder
from guidedcd.preprocessing.shard_jobs import DrawJob

OFFICIAL = {
    "one draw per video": (300, 700),
    "eight draws per video": (300, 3500),
    "single-step reference": (None, 15000),
    "score and prediction": (0.243, 0.12),
    "score and prediction, GB": (19.1, 30),
}
"""Official figure on an H200 (batch 1, PyTorch's attention), and ours to reach: samples per hour, seconds, GB."""


class BareRun(Run):
    """A run whose energy needs no plugin registry."""

    def build(self, kind: str, registry: Any = None) -> dict[str, Any]:
        """The energies, and nothing else."""
        return {name: PTA(config) for name, config in self.energies.items()} if kind == "energy" else {}


class GuidedShardBuilder(ShardBuilder):
    """All draws in the guided part of the grid, stratified over it."""

    def jobs(self, seeds: Sequence[int]) -> list[DrawJob]:
        """Every (video, draw)."""
        draws, count = self.run.preprocess.draws_per_video, self.run.solver.steps - self.first
        found = []
        for video, seed in enumerate(seeds):
            u = numpy.random.Generator(numpy.random.Philox(key=[seed, 1])).random(draws)
            at = [self.first + min(int((d + u[d]) * count / draws), count - 1) for d in range(draws)]
            found += [DrawJob(video=video, draw=d, index=index, scored=True) for d, index in enumerate(at)]
        return found


class RandomText:
    """A text encoder: a fixed random embedding per caption."""

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """(B, 77, D)."""
        rows = [torch.randn(77, self.width, generator=torch.Generator().manual_seed(len(c))) for c in captions]
        return {"prompt_embeds": torch.stack(rows)}


def teacher(options: Any) -> LatentTeacher:
    """VideoCrafter2's sizes with random weights in bfloat16, built on the device."""
    tiny, dtype = options.tiny, torch.float32 if options.device == "cpu" else torch.bfloat16
    size = Geometry(frames=4, height=64, width=64, fps=8) if tiny else Geometry(frames=16, height=320, width=512, fps=8)
    return LatentTeacher(
        network=bare.unet(options.device, dtype, tiny),
        vae=bare.vae(options.device, dtype, tiny),
        text=RandomText(32 if tiny else 1024),
        schedule=NoiseSchedule.scaled_linear().to(options.device),
        geometry=size,
    )


def run(options: Any, fast: str, reference: str, draws: int) -> BareRun:
    """The run as the profile of VideoCrafter2 has it."""
    settings = Preprocess(
        draws_per_video=draws,
        batch_size=options.batch,
        dtype="float16",
        recompute=options.recompute,
        fast=fast,
        precision="no",  # the network has bfloat16 weights already
    )
    return BareRun(
        teacher=Chosen("random", TeacherConfig()),
        data=(Chosen("random", DatasetConfig()),),
        energies={"pta": PTAConfig(reference=reference)},
        solver=Solver(steps=options.steps),
        preprocess=settings,
    )


def clips(count: int, model: LatentTeacher) -> list[Clip]:
    """Random videos."""
    noise = torch.rand(model.geometry.pixel_shape, generator=torch.Generator().manual_seed(0))
    return [Clip(id=f"v/{i}", dataset="v", caption="c" * (i + 1), video=noise.roll(i, 0)) for i in range(count)]


def passes(options: Any, draws: int, videos: int = 64) -> tuple[float, float]:
    """(rows of inversion, rows that its passes have room for) per video, from the schedule itself."""
    blank = SimpleNamespace(schedule=NoiseSchedule.scaled_linear(), device=torch.device("cpu"))
    blank.net = lambda z, t, cond: torch.zeros_like(z)
    worker = GuidedShardBuilder(run(options, "no", "inversion", draws), blank)
    wanted: list[set[int]] = [set() for _ in range(videos)]
    for job in worker.jobs(range(videos)):
        wanted[job.video].add(job.index)
    z0 = torch.zeros(videos, 1, 1, 1, 1)
    steps = references.inversion_passes(blank, z0, {}, options.steps, wanted, worker.rows)
    made = [len(step.videos) for step in steps]
    return sum(made) / videos, len(made) * worker.rows / videos


class Bench:
    """One setting of the faster paths."""

    def __init__(self, options: Any, results: bare.Results, model: LatentTeacher, fast: str) -> None:
        self.options, self.results, self.model, self.fast = options, results, model, fast
        self.device = options.device
        self.seconds: dict[str, float] = {}

    def attempt(self, name: str, work: Callable[[], None]) -> None:
        """Measure, unless the time is over; a failure becomes a row."""
        try:
            if self.results.spent():
                raise TimeoutError("left out: the time is over")
            work()
        except Exception as error:
            self.results.add(figure=name, fast=self.fast, error=f"{type(error).__name__}: {str(error)[:300]}")
            if not isinstance(error, TimeoutError):
                traceback.print_exc()
        finally:
            bare.reset(self.device)

    def part(self, name: str, work: Callable[[], Any], rows: int, **more: Any) -> None:
        """Measure a part of a sample: seconds for one of its rows."""
        began = time.perf_counter()
        bare.reset(self.device)
        median, spread = bare.timed(work, self.device, repeats=self.options.repeats, warm_up=1)
        whole = time.perf_counter() - began
        self.seconds[name] = median / rows
        first = whole - self.options.repeats * median
        self.results.add(
            part=name,
            fast=self.fast,
            rows=rows,
            seconds_per_row=median / rows,
            spread_s=spread,
            peak_gb=bare.peak_gb(self.device),
            first_call_s=first,
            **more,
        )

    def figure(self, name: str, value: float, unit: str, **more: Any) -> None:
        """One of the figures, with the official one beside it."""
        official, wanted = OFFICIAL[name]
        reached = value >= wanted if unit == "samples per hour" else value <= wanted
        about = {"official": official or "-", "to_reach": wanted, "reached": reached}
        self.results.add(figure=name, fast=self.fast, ours=value, unit=unit, **about, **more)

    def measure(self) -> None:
        """All parts, and a figure as soon as its parts are known."""
        settings = run(self.options, self.fast, "inversion", 1)
        paths = {"fast": settings.preprocess.fast, "precision": settings.preprocess.precision}
        with accelerated(self.model, **paths, in_place=True) as quick:
            self.attempt("score and prediction", lambda: self.score(quick))
            self.attempt("guided samples", lambda: self.single(quick))
            self.attempt("inversion", lambda: self.inverted(quick))

    def single(self, quick: LatentTeacher) -> None:
        """Samples with the single-step reference."""
        self.guided(quick, "single-step")
        self.encode(quick)
        self.hours("single-step reference", 0, 1)

    def inverted(self, quick: LatentTeacher) -> None:
        """Samples with full inversions."""
        self.inversion(quick)
        self.hours("one draw per video", *passes(self.options, 1), draws=1)
        self.hours("eight draws per video", *passes(self.options, 8), draws=8)

    def score(self, quick: LatentTeacher) -> None:
        """The reference's pass, the prediction, and the gradient, `batch` samples with gradient at once."""
        batch = self.options.batch
        worker = GuidedShardBuilder(run(self.options, self.fast, "single-step", 1), quick)
        z, t, prompt = bare.inputs(batch, self.device, torch.float32, self.options.tiny)
        text, at = {"prompt_embeds": prompt}, {"single-step": (z.flip(-1), t)}
        captions = [""] * batch

        def work() -> Any:
            return list(worker.scores(z, t, text, captions, at, batch))

        ((_, said, found),) = work()
        if not torch.isfinite(said).all() or not found["pta"].flatten(1).any(1).all():
            raise ArithmeticError("a prediction is not finite, or a score is zero")
        self.part("score and prediction", work, batch, recompute=self.options.recompute)
        peak = self.results.rows[-1]["peak_gb"]
        self.figure("score and prediction", self.seconds["score and prediction"], "s per sample", batch=batch)
        if peak == peak:  # not on a CPU
            self.figure("score and prediction, GB", peak, "GB at the peak, weights included", batch=batch)

    def guided(self, quick: LatentTeacher, reference: str) -> None:
        """All that a scored draw takes but its inversion: noise added, three passes, a gradient, copies to the CPU."""
        worker = GuidedShardBuilder(run(self.options, self.fast, reference, 1), quick)
        rows = worker.rows
        shape = quick.geometry.latent_shape
        work = worker.opened(clips(rows, quick))
        eps, other = (torch.randn(rows, *shape) for _ in range(2))
        places = list(range(rows))
        self.part("guided", lambda: worker.guided(work, places, eps, other, {}), rows)

    def encode(self, quick: LatentTeacher) -> None:
        """The VAE, once per video."""
        batch = self.options.batch
        videos = torch.stack([clip.video for clip in clips(batch, quick)]).to(self.device)
        with torch.no_grad():
            self.part("encode", lambda: quick.encode(videos), batch)

    def inversion(self, quick: LatentTeacher) -> None:
        """One step of as many videos as a pass has rows."""
        worker = GuidedShardBuilder(run(self.options, self.fast, "inversion", 1), quick)
        rows = worker.rows
        z, _, prompt = bare.inputs(rows, self.device, torch.float32, self.options.tiny)
        steps = references.inversion_passes(
            quick, z, {"prompt_embeds": prompt}, self.options.steps, [{self.options.steps - 1}] * rows, rows
        )
        self.part("inversion", lambda: next(steps), rows)

    def hours(self, name: str, rows: float, room: float, draws: int = 1) -> None:
        """Samples per hour from the parts."""
        s = self.seconds
        inversion = room * s["inversion"] if rows else 0.0
        each = s["guided"] + (s["encode"] + inversion) / draws
        share = {"rows_of_inversion": rows, "with_idle_rows": room} if rows else {}
        self.figure(name, 3600 / each, "samples per hour", seconds_per_sample=each, **share)

    def whole(self, reference: str, videos: int, draws: int) -> None:
        """A shard from clips to file, once."""
        name = f"whole shard, {reference}, {videos} videos, {draws} draws each"
        settings = run(self.options, self.fast, reference, draws)
        paths = {"fast": settings.preprocess.fast, "precision": settings.preprocess.precision}
        expected = videos * draws * self.seconds.get("guided", 0.3)
        if reference == "inversion":
            expected += videos * self.options.steps * self.seconds.get("inversion", 0.06)

        def work() -> None:
            if self.results.seconds + expected > self.options.budget + 30:
                raise TimeoutError(f"left out: would take {expected:.0f} s")
            with accelerated(self.model, **paths, in_place=True) as quick:
                worker = GuidedShardBuilder(settings, quick)
                some = clips(videos, quick)
                bare.synchronize(self.device)
                began = time.perf_counter()
                samples, tensors = worker.shard(some, lambda share: None)
                with tempfile.TemporaryDirectory() as folder:
                    store.save_shard(Path(folder), 0, samples, tensors, [])
                seconds = time.perf_counter() - began
            self.results.add(
                whole=name,
                fast=self.fast,
                samples=videos * draws,
                samples_per_hour=videos * draws / seconds * 3600,
                peak_gb=bare.peak_gb(self.device),
            )

        self.attempt(name, work)


def main() -> None:
    """Measure."""
    parser = bare.parser(__doc__, budget=200)
    parser.add_argument("--fast", default="layers,blocks", help="settings of preprocess.fast, by commas; also: no")
    parser.add_argument("--recompute", default="cheap", choices=("nothing", "cheap", "most"))
    parser.add_argument("--batch", type=int, default=4, help="samples of a pass with gradient; passes without: twice")
    parser.add_argument("--steps", type=int, default=200, help="points of the solver's grid")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts-only", action="store_true", help="make no whole shards at the end")
    options = parser.parse_args()
    if options.tiny:
        options.batch, options.steps, options.repeats = 1, min(options.steps, 8), 1
    results = bare.Results(options.out, options.budget)
    model = teacher(options)
    weights = sum(p.numel() for p in model.network.parameters())
    results.add(about="network", parameters=weights, recompute=options.recompute, batch=options.batch)
    benches = [Bench(options, results, model, fast) for fast in options.fast.split(",")]
    for bench in benches:  # all of a setting before the next: compiling takes minutes
        with settled():  # as when a store is filled
            bench.measure()
        if not options.parts_only:
            bench.whole("single-step", 4 * options.batch, 1)
            bench.whole("inversion", 2 * options.batch, 2 if options.tiny else 8)


if __name__ == "__main__":
    main()
