"""Published checkpoints at full size: written with random weights, read by the real loaders, run once each.

    python benchmarks/published_files.py --manifests FOLDER --out published_files.json  # one GPU, 13 GB of disk
    python benchmarks/published_files.py --tiny  # the same on any machine, in seconds

Rows: what was written and read (seconds, GB, anonymous memory), one PTA score, one 4-step sample with decoding, and one
pass of each reward with the gradient to the pixels. The exit status is 1 if a row has an error.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness  # first: it finds guidedcd where that is not installed
import random_checkpoints
import torch
from harness import GB, Recorder, free_memory, time_calls
from torch import Tensor

PROMPT = "a red panda eats bamboo in a snowy forest"
REWARDS = ("hps", "clip", "internv2", "internv2-8", "pickscore")


class AnonymousMemory:
    """The growth of this process's anonymous memory inside a block, in GB: mapped pages of files do not count."""

    def __enter__(self) -> AnonymousMemory:
        free_memory()
        self._running, self._start = True, _anonymous_bytes()
        self._peak = self._start
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._began
        self._running = False
        self._thread.join()
        self.gb = (max(self._peak, _anonymous_bytes()) - self._start) / GB

    def _watch(self) -> None:
        while self._running:
            self._peak = max(self._peak, _anonymous_bytes())
            time.sleep(0.01)


def _anonymous_bytes() -> int:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


class PublishedFiles:
    """A folder for the files, written one or two at a time, and the rows about them."""

    def __init__(self, options: argparse.Namespace, recorder: Recorder, scratch: Path) -> None:
        self.options, self.recorder, self.scratch = options, recorder, scratch
        self.device = torch.device(options.device)

    def write(self, name: str) -> Path:
        """Write a published file of random weights, and add a row about it."""
        manifest = None if self.options.tiny else random_checkpoints.manifest(name, self.options.manifests)
        shapes = manifest or random_checkpoints.derived(name, self.options.tiny)
        began = time.perf_counter()
        path = random_checkpoints.write(name, shapes, self.scratch, self.device)
        values = {"seconds": time.perf_counter() - began, "file_gb": path.stat().st_size / GB}
        source = "manifest" if manifest else "this package's tables"
        self.recorder.add(f"write {name}", values, file=path.name, keys_from=source)
        return path

    def load(self, name: str, path: Path, load: Callable[[], Any]) -> Any:
        """Load a file, and add a row about it."""
        with AnonymousMemory() as memory:
            model = load()
        values = {"seconds": memory.seconds, "anonymous_gb": memory.gb, "file_gb": path.stat().st_size / GB}
        self.recorder.add(f"load {name}", values)
        return model

    def run(self, name: str, call: Callable[[], Tensor], shape: tuple[int, ...]) -> None:
        """Time what a model computes, and add a row with its norm."""
        options = self.options
        timing = time_calls(call, self.device, repeats=options.repeats, warm_up=options.warm_up)
        norm = float(timing.first_output.float().norm())
        self.recorder.add(name, timing.values(), shape=list(shape), finite=math.isfinite(norm), norm=norm)

    def videocrafter2(self) -> None:
        """The teacher, one PTA score of it, the student, one sample of it."""
        from guidedcd.inference.published import load_student
        from guidedcd.models.teachers.videocrafter2 import load_videocrafter2

        dtype, models = getattr(torch, self.options.dtype), {}
        size = {"frames": 2, "height": 16, "width": 32} if self.options.tiny else {}

        def load_teacher() -> None:
            path = self.write("videocrafter2")
            arch = random_checkpoints.arch_file(self.scratch) if self.options.tiny else None
            teacher = self.load("videocrafter2", path, lambda: load_videocrafter2(path, arch=arch, dtype=dtype, **size))
            models["teacher"] = teacher.to(self.device)

        def load_students() -> None:
            path = self.write("student")
            models["student"] = self.load("student", path, lambda: load_student(path, models["teacher"]))

        attempt = self.recorder.attempt
        attempt("load videocrafter2", load_teacher)
        if "teacher" in models:
            attempt("pta score", lambda: score(self, models["teacher"]))
            attempt("load student", load_students)
        if "student" in models:
            attempt("sample, 4 steps", lambda: sample(self, models["teacher"], models["student"]))
        for name in ("videocrafter2", "student"):
            (self.scratch / random_checkpoints.FILES[name]).unlink(missing_ok=True)


def score(files: PublishedFiles, teacher: Any) -> None:
    """The gradient of the PTA energy at one noisy video: a pass over the reference, a pass with gradient, and back."""
    from guidedcd_pta import PTAConfig
    from guidedcd_pta.energy import PTA

    energy, shape = PTA(PTAConfig()), (1, *teacher.geometry.latent_shape)
    z, reference = (torch.randn(shape, device=files.device) for _ in range(2))
    t, cond = torch.tensor([799], device=files.device), teacher.embed([PROMPT])

    def call() -> Tensor:
        with torch.no_grad():
            target = teacher.seen(reference, t, cond, energy.needs)
        leaf = z.clone().requires_grad_(True)
        value = energy(teacher.seen(leaf, t, cond, energy.needs), target)
        return torch.autograd.grad(value.sum(), leaf)[0]

    files.run("pta score", call, shape)


def sample(files: PublishedFiles, teacher: Any, student: Any) -> None:
    """One video in 4 steps, text encoding and decoding included."""
    from guidedcd.diffusion.sampler import sample as draw

    shape = (1, *teacher.geometry.latent_shape)
    latents, noises = torch.randn(shape, device=files.device), torch.randn(4, *shape, device=files.device)

    @torch.no_grad()
    def call() -> Tensor:
        z = draw(student, teacher, teacher.embed([PROMPT]), latents, 4, 7.5, [0.05], 0.5, noises=noises)
        return teacher.decode(z)

    files.run("sample, 4 steps", call, shape)


def reward(files: PublishedFiles, name: str) -> None:
    """A reward of one video, with the gradient to its pixels."""
    tiny = files.options.tiny
    kind, frames = name.partition("-")[0], {"internv2": 4, "internv2-8": 8}.get(name, 2)
    path = files.scratch / random_checkpoints.FILES[kind]
    if not path.is_file():
        path = files.write(kind)
    module = files.load(name, path, lambda: build_reward(kind, path, files.scratch, files.options)).to(files.device)
    size = (28, 44) if tiny else (320, 512)
    pixels = torch.rand(1, frames, 3, *size, device=files.device, requires_grad=True)

    def call() -> Tensor:
        return torch.autograd.grad(module(pixels, [PROMPT]).sum(), pixels)[0]

    files.run(f"reward {name}", call, pixels.shape)


def build_reward(kind: str, path: Path, scratch: Path, options: argparse.Namespace) -> torch.nn.Module:
    """The reward, as a run builds it."""
    import importlib

    plugin, module = (importlib.import_module(f"guidedcd_{kind}{suffix}") for suffix in ("", ".reward"))
    config = {"hps": "HPSConfig", "clip": "CLIPConfig", "internv2": "InternV2Config", "pickscore": "PickScoreConfig"}
    target = {"hps": "HPS", "clip": "CLIPScore", "internv2": "InternV2", "pickscore": "PickScore"}
    fields: dict[str, Any] = {"path": str(path)}
    fields["dtype"] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}[options.dtype]
    if options.tiny:
        fields["arch"] = str(random_checkpoints.sizes_file(kind, scratch))
    if kind == "internv2":
        fields["vocab"] = str(random_checkpoints.vocabulary(scratch, 30 if options.tiny else 30522))
    return getattr(module, target[kind])(getattr(plugin, config[kind])(**fields))


def main(arguments: list[str] | None = None) -> int:
    """Run what is selected; the exit status is 1 when a row has an error."""
    parser = harness.parser(__doc__, budget=230, repeats=3, warm_up=1)
    parser.add_argument("--manifests", type=Path, help="folder with {key: shape} files of the published checkpoints")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--scratch", type=Path, help="folder for the files, 13 GB")
    options = parser.parse_args(arguments)
    recorder = Recorder(options, "published_files")
    rewards = [name for name in REWARDS if harness.selected(f"reward {name}", options.only)]
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        files = PublishedFiles(options, recorder, Path(folder))
        if harness.selected("videocrafter2", options.only):
            files.videocrafter2()
        for number, name in enumerate(rewards):
            recorder.attempt(f"reward {name}", lambda name=name: reward(files, name))
            kind = name.partition("-")[0]
            if not any(later.partition("-")[0] == kind for later in rewards[number + 1 :]):
                (files.scratch / random_checkpoints.FILES[kind]).unlink(missing_ok=True)
    print(f"done after {recorder.seconds:.0f} s", flush=True)
    return 1 if recorder.failed else 0


if __name__ == "__main__":
    sys.exit(main())
