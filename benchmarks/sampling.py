"""Videos of 16 frames of 320x512 from a student of VideoCrafter2's size: 4, 8 and 16 steps, and the decoder alone.

    python benchmarks/sampling.py --out sampling.json --budget 150

The package's own sampler, student and decoder run with random weights. Rows are printed as soon as they are known.
Errors are of the pixels, against the stock networks in float32 from the same noise.
"""

from __future__ import annotations

import copy
import gc
import time
import traceback
from collections.abc import Callable
from typing import Any

import attrs
import bare  # also finds guidedcd where it is not installed
import torch
from torch import Tensor, nn

from guidedcd import acceleration
from guidedcd.config import sections
from guidedcd.data.geometry import Geometry
from guidedcd.diffusion.sampler import sample
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.models.student import Student
from guidedcd.models.teachers.latent import LatentTeacher

OFFICIAL = {4: 0.526, 8: 0.832, 16: 1.441, 0: 0.213}
"""Seconds of the official code with PyTorch's attention on an H200, by steps; 0 is the decoder alone."""


@attrs.frozen(kw_only=True)
class Variant:
    """How the networks are prepared, and what is measured."""

    name: str
    steps: tuple[int, ...] = (4, 8, 16)
    """0 decodes only."""
    unet: Callable[[nn.Module], nn.Module] = lambda network: network
    vae: Callable[[nn.Module], nn.Module] = lambda network: network
    benchmark: bool = True
    """Let cuDNN try its convolutions."""
    batch: int = 1


def variants() -> list[Variant]:
    """All of them, the most promising first."""

    def graphs(network: nn.Module) -> nn.Module:
        return acceleration.speed_up(network, graphs=True)

    def blocks(network: nn.Module) -> nn.Module:
        return acceleration.speed_up(network, compile="blocks")

    def last(network: nn.Module) -> nn.Module:
        return network.to(memory_format=torch.channels_last)

    return [
        Variant(name="graphs", unet=graphs, vae=acceleration.speed_up),
        Variant(name="layers", unet=acceleration.speed_up, vae=acceleration.speed_up),
        Variant(name="stock", benchmark=False),
        Variant(name="decode fast", steps=(0,), vae=acceleration.speed_up),
        Variant(name="decode stock", steps=(0,), benchmark=False),
        Variant(name="decode channels-last", steps=(0,), vae=last),
        Variant(name="graphs", steps=(4,), unet=graphs, vae=acceleration.speed_up, batch=4),
        Variant(name="decode fast no-benchmark", steps=(0,), vae=acceleration.speed_up, benchmark=False),
        Variant(name="decode blocks", steps=(0,), vae=blocks),
    ]


class Bench:
    """A student, its noise, and what is known so far."""

    def __init__(self, options: Any) -> None:
        self.options, self.device = options, options.device
        self.results = bare.Results(options.out, options.budget)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        unet = bare.unet(self.device, torch.bfloat16, options.tiny)
        vae = bare.vae(self.device, torch.bfloat16, options.tiny)
        size = (4, 64, 64) if options.tiny else (bare.FRAMES, 8 * bare.HEIGHT, 8 * bare.WIDTH)
        geometry = Geometry(frames=size[0], height=size[1], width=size[2], fps=8)
        self.teacher = LatentTeacher(
            network=unet, vae=vae, text=None, schedule=NoiseSchedule.scaled_linear(), geometry=geometry
        )
        self.teacher.schedule.to(self.device)
        self.student = bare.fill(Student(self.teacher, sections.Student()), seed=2)
        self.references: dict[int, Tensor] = {}
        self.results.add(what="built", **bare.machine())

    @torch.no_grad()
    def video(self, student: Student, teacher: LatentTeacher, steps: int, batch: int = 1) -> Tensor:
        """Pixels (B, F, 3, H, W); noise depends on the step and the sample alone."""
        z, _, prompt = bare.inputs(batch, self.device, torch.float32, self.options.tiny)
        if not steps:
            return teacher.decode(z)
        noises = [z.roll(1 + step, dims=-1) for step in range(steps)]
        return teacher.decode(sample(student, teacher, {"prompt_embeds": prompt}, z, steps, 7.5, noises=noises))

    def reference(self, steps: int) -> Tensor:
        """The same video from stock networks in float32."""
        if steps not in self.references:
            teacher = nn.Module.to(copy.deepcopy(self.teacher), torch.float32)  # without its fingerprint
            student = Student(teacher, sections.Student())
            student.load_state_dict(self.student.state_dict())
            self.references[steps] = self.video(student.float(), teacher, steps).cpu()
        return self.references[steps]

    def measure(self, variant: Variant) -> None:
        """One row for every number of steps; an exception becomes the row."""
        for steps in variant.steps:
            about = {"name": variant.name, "steps": steps, "batch": variant.batch}
            if self.results.spent():
                print(f"left out, the budget of {self.options.budget:.0f} s is spent: {about}")
                continue
            try:
                reference = self.reference(steps) if steps in (0, 4) else None
                torch.backends.cudnn.benchmark = variant.benchmark
                bare.reset(self.device)
                self.results.add(**about, **self.row(variant, steps, reference))
            except Exception as mistake:
                traceback.print_exc()
                self.results.add(**about, error=f"{type(mistake).__name__}: {str(mistake).splitlines()[0][:200]}")
            gc.collect()

    def row(self, variant: Variant, steps: int, reference: Tensor | None) -> dict[str, Any]:
        """Seconds per video, memory and error."""
        student = copy.deepcopy(self.student)
        variant.unet(student.network)
        variant.vae(self.teacher.vae)

        def run() -> Tensor:
            return self.video(student, self.teacher, steps, variant.batch)

        try:
            start = time.perf_counter()
            out = run()
            bare.synchronize(self.device)
            first = time.perf_counter() - start
            seconds, spread = bare.timed(run, self.device, repeats=5)
        finally:
            acceleration.restore(self.teacher.vae).to(memory_format=torch.contiguous_format)
        relative, largest = (float("nan"),) * 2 if reference is None else bare.error(out[:1], reference)
        return {
            "seconds_per_video": seconds / variant.batch,
            "official_s": OFFICIAL[steps],
            "spread_s": spread,
            "first_call_s": first,
            "peak_gb": bare.peak_gb(self.device),
            "relative_error": relative,
            "largest_error": largest,
        }


def main() -> None:
    """Measure, and print the table."""
    options = bare.parser(__doc__, budget=150).parse_args()
    bench = Bench(options)
    for variant in bare.chosen(variants(), options.part, options.only):
        bench.measure(variant)
    columns = {"steps": "d", "seconds_per_video": ".4f", "official_s": ".3f", "spread_s": ".4f", "first_call_s": ".1f"}
    columns |= {"peak_gb": ".1f", "relative_error": ".2e", "batch": "d", "name": ""}
    bench.results.table(columns, "seconds_per_video")


if __name__ == "__main__":
    main()
