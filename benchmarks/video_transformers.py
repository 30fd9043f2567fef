"""Wan 2.1 1.3B's size with random weights: forward passes, training steps, preprocessing and loading, stock and fast.

    python benchmarks/video_transformers.py --out transformers.json              # one GPU
    python benchmarks/video_transformers.py --processes 2 --only parallel        # two GPUs against one of them
    python benchmarks/video_transformers.py --flash-attention FA4                # FlashAttention 4 where it is faster
    python benchmarks/video_transformers.py --tiny                               # a CPU, tiny networks

Rows are named WHAT SIZE/FAST, where FAST is a value of --train.fast: `no` is stock diffusers, `layers` chooses the
attention kernel, `blocks` also compiles the repeated block, and `blocks-graphs` also replays passes without gradient.
`small` videos have 33 frames of 256x448 pixels, `large` ones 81 of 480x832. Compiling takes most of the time, so that
the rows that share a compiled block are neighbours.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from pathlib import Path
from typing import Any

import harness  # first: it finds guidedcd where that is not installed
import torch
import transformer_networks as wan
from harness import Recorder, time_calls
from training_parallel import spawn
from transformer_steps import measure_process, measure_step

from guidedcd.acceleration.apply import accelerated
from guidedcd.acceleration.flash_attention import activate
from guidedcd.acceleration.garbage import settled
from guidedcd.acceleration.options import choose
from guidedcd.acceleration.switch import restore, speed_up
from guidedcd.config.sections import Preprocess, Train
from guidedcd.preprocessing import shard_files
from guidedcd.preprocessing.shard_builder import ShardBuilder

FORWARD = (("small", 1), ("small", 4), ("large", 1))
"""Sizes and batches of forward passes."""
ORDER = (
    *(f"forward {size} batch {batch}/{fast}" for size, batch in FORWARD for fast in ("no", "layers", "blocks")),
    *("cd small/no", "cd small/blocks", "cd small/blocks-graphs", "lora large/no", "lora large/blocks"),
    *("preprocess small/no", "preprocess small/blocks", "loading", "lora large rewards/blocks"),
    *("lora large rewards replayed/blocks", "lora large rewards recomputed/blocks"),
    *("lora large all recomputed/blocks", "lora large rewards/no"),
    *("forward small batch 1/graphs", "cd small recomputed/no", "cd small recomputed/blocks"),
)
"""What is measured without --only, the most important first, rows that share a compiled block together."""
PAGE = 4096
"""Bytes of memory that are read at once."""
PARALLEL = ("parallel-ddp", "parallel-fsdp")


def calls(size: str, options: argparse.Namespace) -> dict[str, int]:
    """Measured and other calls of a row; of large videos fewer."""
    if size == "small":
        return {"repeats": options.repeats, "warm_up": options.warm_up}
    return {"repeats": min(options.repeats, 5), "warm_up": min(options.warm_up, 2)}


class ForwardPasses:
    """The denoiser's forward passes without gradient."""

    def __init__(self, options: argparse.Namespace, recorder: Recorder) -> None:
        self.options, self.recorder = options, recorder
        self.dtype = torch.float32 if options.tiny else torch.bfloat16
        self.network: Any = None
        self.stock: dict[str, torch.Tensor] = {}

    def measure(self, size: str, batch: int, fast: str) -> None:
        """Milliseconds of a pass per sample, and the error against stock diffusers."""
        if self.network is None:
            self.network = wan.network(self.options.device, self.dtype, self.options.tiny)
        name = f"forward {size} batch {batch}"
        inputs = wan.inputs(batch, size, self.options.device, self.dtype, self.options.tiny)
        paths = choose(fast, self.network)
        torch.backends.cudnn.benchmark = paths is not None
        if paths is None:
            restore(self.network)
        else:
            speed_up(self.network, compile=paths.compile, graphs=paths.graphs)

        @torch.no_grad()
        def call() -> torch.Tensor:
            return self.network(**inputs, return_dict=False)[0]

        timing = time_calls(call, self.options.device, **calls(size, self.options))
        output = timing.first_output.float().cpu()
        self.stock.setdefault(name, output)
        errors = harness.relative_errors(output, self.stock[name])
        values = {"ms_per_sample": 1e3 * timing.median / batch, **timing.values()}
        self.recorder.add(f"{name}/{fast}", values, **errors, all_seconds=timing.seconds)
        if self.options.profile and fast == "blocks":
            from unet import profile

            profile(call, name)


def measure_preprocessing(recorder: Recorder, name: str, options: argparse.Namespace) -> None:
    """Samples of a run with an energy of the output per hour: one draw for each video, a whole shard with its file."""
    fast = name.partition("/")[2]
    dtype = torch.float32 if options.tiny else torch.bfloat16
    teacher = wan.teacher(options.device, dtype, "small", options.tiny)
    batch, videos = (1, 2) if options.tiny else (4, 32)
    settings = Preprocess(draws_per_video=1, batch_size=batch, dtype="bfloat16", fast=fast, precision="no")
    run = wan.run_of(preprocess=settings)
    clips = wan.clips(videos, teacher.geometry)
    with accelerated(teacher, fast=fast, precision="no", in_place=True) as fast_teacher, settled():
        builder = ShardBuilder(run, fast_teacher)
        encoding = torch.stack([clip.video for clip in clips[:batch]]).to(options.device)

        @torch.no_grad()
        def encode() -> Any:
            return fast_teacher.encode(encoding)

        def shard() -> None:
            samples, tensors = builder.shard(clips, lambda share: None)
            with tempfile.TemporaryDirectory() as folder:
                shard_files.save_shard(Path(folder), 0, samples, tensors, [])

        parts = time_calls(encode, options.device, repeats=3, warm_up=1)
        timing = time_calls(shard, options.device, repeats=min(options.repeats, 3), warm_up=1)
    values = {"samples_per_hour": 3600 * videos / timing.median, **timing.values(per=videos)}
    recorder.add(name, values, videos=videos, encode_s=parts.median / batch)


def measure_loading(recorder: Recorder, name: str, options: argparse.Namespace) -> None:
    """Seconds that `wan` takes to load the transformer of a folder in diffusers' layout, against reading its bytes."""
    from guidedcd_dits.folder import PipelineFolder

    dtype = torch.float32 if options.tiny else torch.bfloat16
    network = wan.network(options.device, dtype, options.tiny)
    with tempfile.TemporaryDirectory() as place:
        network.save_pretrained(Path(place) / "transformer")
        del network
        harness.free_memory()
        files = sorted((Path(place) / "transformer").glob("*.safetensors"))
        size = sum(path.stat().st_size for path in files)
        buffer = memoryview(bytearray(max(path.stat().st_size for path in files)))
        folder = PipelineFolder(folder=Path(place), teacher="wan", index={}, dtype=dtype, weights=True)

        def read() -> None:
            for path in files:
                with path.open("rb", buffering=0) as file:
                    position = 0
                    while count := file.readinto(buffer[position : position + 2**26]):
                        position += count

        def load() -> None:
            model = folder.model("transformer", "WanTransformer3DModel")
            for weight in model.parameters():  # a file that is only mapped is read when its pages are touched
                weight.detach().flatten().view(torch.uint8)[::PAGE].sum().item()

        reading = time_calls(read, "cpu", repeats=3, warm_up=1)
        loading = time_calls(load, "cpu", repeats=3, warm_up=1)
    values = {"seconds": loading.median, "times_reading": loading.median / reading.median}
    recorder.add(name, values, gb=size / harness.GB, reading_s=reading.median)


def measure_parallel(recorder: Recorder, options: argparse.Namespace, names: list[str]) -> None:
    """Samples per second of one process, and of several by each way; a row is written as soon as it is known."""
    speeds: list[float] = []

    def measure(name: str, world: int) -> None:
        timing = spawn(world, name, options, measure_process)
        values = timing.values()
        if world > 1 and speeds:
            values["times_one_gpu"] = world / timing.median / speeds[0]
        elif world == 1:
            speeds.append(1 / timing.median)
        recorder.add(name, values, processes=world, all_seconds=timing.seconds)

    for what, world in (("parallel-one", 1), *((name, options.processes) for name in names)):
        name = f"{what}/{options.fast}"
        recorder.attempt(name, functools.partial(measure, name, world))


def main(arguments: list[str] | None = None) -> None:
    """Measure what is selected."""
    parser = harness.parser(__doc__, budget=450, repeats=7, warm_up=3)
    parser.add_argument("--processes", type=int, default=1, help="GPUs for the rows named parallel-*")
    parser.add_argument("--fast", default="blocks", help="--train.fast of the rows named parallel-*")
    parser.add_argument("--batch", type=int, default=2, help="samples per GPU of the rows named parallel-*")
    parser.add_argument("--profile", action="store_true", help="also print where the time of compiled passes goes")
    parser.add_argument("--flash-attention", help="--train.flash-attention, for all rows but those of stock diffusers")
    options = parser.parse_args(arguments)
    activate(Train(flash_attention=options.flash_attention), torch.device(options.device))
    recorder = Recorder(options, "video_transformers")
    passes = ForwardPasses(options, recorder)
    began = time.perf_counter()
    parallel = [name for name in PARALLEL if harness.selected(f"{name}/{options.fast}", options.only)]
    if options.processes > 1 and parallel:
        measure_parallel(recorder, options, parallel)
    for row in ORDER:
        if not harness.selected(row, options.only):
            continue
        what, _, fast = row.partition("/")
        if what.startswith("forward"):
            _, size, _, batch = what.split()
            measure = functools.partial(passes.measure, size, int(batch), fast)
        else:
            passes.network = None
            kinds = {"preprocess": measure_preprocessing, "loading": measure_loading}
            measure = functools.partial(kinds.get(what.split()[0], measure_step), recorder, row, options)
        recorder.attempt(row, measure)
    print(f"done after {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
