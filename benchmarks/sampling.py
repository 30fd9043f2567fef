"""Videos of 16 frames of 320x512 from a student of VideoCrafter2's size: 4, 8 and 16 steps, and the decoder alone.

    python benchmarks/sampling.py --out sampling.json
    python benchmarks/sampling.py --tiny               # a CPU, tiny networks

The package's own sampler, student and decoder run with random weights. Errors are of the pixels, against the stock
networks in float32 from the same noise.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import attrs
import harness  # first: it finds guidedcd where that is not installed
import networks
import torch
from harness import time_calls
from torch import Tensor, nn

from guidedcd import acceleration
from guidedcd.config import sections
from guidedcd.diffusion.sampler import sample
from guidedcd.models.student import Student
from guidedcd.models.teachers.latent import LatentTeacher


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

    def row(self, steps: int) -> str:
        """The name of its row for a number of steps."""
        return f"{f'{steps} steps' if steps else 'decoder alone'}, {self.name}, batch {self.batch}"


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
        Variant(name="fast", steps=(0,), vae=acceleration.speed_up),
        Variant(name="stock", steps=(0,), benchmark=False),
        Variant(name="channels-last", steps=(0,), vae=last),
        Variant(name="graphs", steps=(4,), unet=graphs, vae=acceleration.speed_up, batch=4),
        Variant(name="fast no-benchmark", steps=(0,), vae=acceleration.speed_up, benchmark=False),
        Variant(name="blocks", steps=(0,), vae=blocks),
    ]


class SamplingBenchmark:
    """A student, its noise, and the videos to compare with."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, options.device
        self.recorder = harness.Recorder(options, "sampling")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.teacher = networks.teacher(self.device, torch.bfloat16, options.tiny)
        self.student = networks.fill(Student(self.teacher, sections.Student()), seed=2)
        self.references: dict[int, Tensor] = {}

    @torch.no_grad()
    def video(self, student: Student, teacher: LatentTeacher, steps: int, batch: int = 1) -> Tensor:
        """Pixels (B, F, 3, H, W); noise depends on the step and the sample alone."""
        z, _, prompt = networks.inputs(batch, self.device, torch.float32, self.options.tiny)
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

    def measure(self, variant: Variant, steps: int) -> None:
        """Add one row; only the decoder's and four steps' pixels are compared."""
        reference = self.reference(steps) if steps in (0, 4) else None
        torch.backends.cudnn.benchmark = variant.benchmark
        student = copy.deepcopy(self.student)
        variant.unet(student.network)
        variant.vae(self.teacher.vae)
        try:
            timing = time_calls(
                lambda: self.video(student, self.teacher, steps, variant.batch),
                self.device,
                repeats=self.options.repeats,
                warm_up=self.options.warm_up,
            )
        finally:
            acceleration.restore(self.teacher.vae).to(memory_format=torch.contiguous_format)
        errors = {} if reference is None else harness.relative_errors(timing.first_output[:1], reference)
        self.recorder.add(variant.row(steps), timing.values(per=variant.batch) | errors)


def main() -> None:
    """Measure, and print the table."""
    options = harness.parser(__doc__, budget=150, repeats=5).parse_args()
    benchmark = SamplingBenchmark(options)
    for variant in variants():
        for steps in variant.steps:
            if harness.selected(name := variant.row(steps), options.only):
                benchmark.recorder.attempt(name, lambda v=variant, steps=steps: benchmark.measure(v, steps))
    columns = {"seconds": ".4f", "spread_s": ".4f", "first_call_s": ".1f", "peak_gb": ".1f", "relative_error": ".2e"}
    benchmark.recorder.table({**columns, "name": ""}, "seconds")


if __name__ == "__main__":
    main()
