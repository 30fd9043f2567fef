"""A student of a video transformer as LoRA files that diffusers and ComfyUI load, for one strength of the guidance.

The guidance inputs of such a student are added to the output of its time embedding. With fixed inputs that is a
constant, which is added to the bias of the embedding's last layer, so that the files need no code of their own.

Legend: B batch, C channels, F frames, h/w latent size, E energies.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guidedcd.acceleration.precision import relative_error
from guidedcd.diffusion.embeddings import guidance_embedding
from guidedcd.diffusion.randomness import noise
from guidedcd.diffusion.sampler import multistep_timesteps
from guidedcd.inference.export import merged_student, peft_lora
from guidedcd.inference.export.self_test import assert_close, run_clean
from guidedcd.inference.export.writing import make_readable, save_model
from guidedcd.inference.pipeline import StudentPipeline, lambda_inputs, strengths
from guidedcd.models.guidance_inputs import guidance_inputs

_SCRIPT = """
import diffusers, inspect
def decoded(value):
    if not isinstance(value, dict):
        return value
    return inputs[value["tensor"]] if "tensor" in value else tuple(map(decoded, value["tuple"]))
kind = getattr(diffusers, options["pipeline"])
network = getattr(diffusers, options["class"]).from_pretrained(options["base"])
parts = {name: None for name in inspect.signature(kind.__init__).parameters if name != "self"}
pipe = kind(**{**parts, "transformer": network})
pipe.load_lora_weights(folder, weight_name=options["file"])
for number, (args, kwargs) in enumerate(options["calls"]):
    output = pipe.transformer(*map(decoded, args), **{name: decoded(value) for name, value in kwargs.items()})
    out[f"prediction-{number}"] = output[0]
"""

USAGE = """
import torch
from diffusers import PIPELINE

pipe = PIPELINE.from_pretrained("BASE", torch_dtype=torch.bfloat16)
pipe.load_lora_weights("FOLDER", weight_name="FILE")
# Sample with the scheduler, shift and steps in the file's metadata (guidedcd_sampling) and guidance_scale=1.0.
"""


def write_lora(trained: StudentPipeline, folder: Path, rank: int | None) -> str:
    """Write the files and test them with diffusers' own loader.

    Args:
        trained: The student.
        folder: The folder for the files.
        rank: As that of `peft_lora.write_lora`.

    Returns:
        Sentences about the error and the test, for the console and the model card.

    Raises:
        GuidedCDError: The self-test fails.
    """
    teacher: Any = trained.teacher
    student = trained.student
    network: Any = merged_student.merged_network(student)
    base = peft_lora.on_cpu(teacher.network)
    pairs, rank, lost = peft_lora.pairs_of(student, base, network, rank)
    # Layers that did not change are left out, unless none did.
    pairs = {name: pair for name, pair in pairs.items() if pair[0].any() and pair[1].any()} or pairs
    inputs = _guidance(trained)
    name, constant = _folded(network, teacher.time_embedding, inputs)
    files = teacher.save_lora(folder, pairs, {name: constant}, int(trained.run.evaluate.steps))
    make_readable(folder)

    restored = peft_lora.with_pairs(base, network, pairs)
    calls, tensors, expected = _predictions(trained, restored, inputs)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        save_model(base, Path(scratch, "transformer"))
        options = {
            "base": str(Path(scratch, "transformer")),
            "class": type(base).__name__,
            "pipeline": teacher.lora_pipeline,
            "file": files[0],
            "calls": calls,
        }
        results = run_clean(_SCRIPT, folder, tensors, options)
    error = assert_close(expected, results, 1e-3)
    whole = _predictions(trained, network, inputs)[2]
    before, after = (torch.cat([one.flatten() for one in group.values()]) for group in (whole, expected))
    energies = ", ".join(student.energies)
    always = f" and {energies} at its strength in every step" if energies else ""
    return (
        f"the files ({', '.join(files)}) of rank {rank} leave out {lost:.2%} of the change of the weights; "
        f"predictions differ from the student's by {relative_error(after, before):.2%}; a guidance of "
        f"{trained.run.evaluate.omega:g}{always} is part of the weights; a fresh process without guidedcd loads the "
        f"first file through {teacher.lora_pipeline} and predicts the same, largest relative error {error:.1g}"
    )


def usage(trained: StudentPipeline) -> str:
    """Python code that loads the files, for the model card."""
    teacher: Any = trained.teacher
    path = getattr(trained.run.teacher.config, "path", "")
    text = USAGE.replace("PIPELINE", teacher.lora_pipeline).replace("BASE", str(path))
    expert = getattr(teacher, "expert", None) if getattr(teacher, "other", None) is not None else None
    return text.replace("FILE", f"{expert}_noise_pytorch_lora_weights.safetensors" if expert else peft_lora.DIFFUSERS)


def _guidance(trained: StudentPipeline) -> Tensor:
    """The guidance embedding (1, 256 (1 + E)) of the run's evaluation, with every energy at its strength."""
    values = lambda_inputs(trained, strengths(trained))
    embedding = guidance_embedding(
        torch.tensor([float(trained.run.evaluate.omega)]), torch.stack(values)[None].float() if values else None
    )
    assert embedding is not None  # there is an omega
    return embedding


def _folded(network: nn.Module, path: str, inputs: Tensor) -> tuple[str, Tensor]:
    """The bias (its name) that takes the constant of the guidance `inputs`, and the constant (channels,)."""
    embedding: Any = network.get_submodule(path)
    layers = [name for name, module in embedding.named_modules() if hasattr(module, "out_features")]
    last = [name for name in layers if not name.startswith("guidance_embedding")][-1]
    return f"{path}.{last}.bias", embedding.guidance_embedding.term(inputs)[0].detach()


@torch.no_grad()
def _predictions(
    trained: StudentPipeline, network: nn.Module, inputs: Tensor
) -> tuple[list[Any], dict[str, Tensor], dict[str, Tensor]]:
    """Calls of a network at the timesteps of a few-step sample: arguments, their tensors by name, and predictions."""
    teacher: Any = trained.teacher
    shape = teacher.geometry.latent_shape
    if shape[0] * shape[1] * shape[2] * shape[3] > merged_student.SMALL:
        shape = (shape[0], 2, 8, 8)
    texts = merged_student.TEXTS
    calls: list[Any] = []
    tensors: dict[str, Tensor] = {}
    predictions: dict[str, Tensor] = {}

    def encoded(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors[key := f"tensor-{len(tensors)}"] = value
            return {"tensor": key}
        return {"tuple": [encoded(one) for one in value]} if isinstance(value, tuple | list) else value

    def record(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        predictions[f"prediction-{len(calls)}"] = output[0]
        calls.append([[encoded(one) for one in args], {name: encoded(one) for name, one in kwargs.items()}])

    handle = network.register_forward_hook(record, with_kwargs=True)
    try:
        cond = teacher.embed(texts)
        for draw, timestep in enumerate(multistep_timesteps(merged_student.STEPS)):
            z = torch.stack([noise(seed, draw, shape) for seed in range(len(texts))])
            with guidance_inputs(network, teacher.time_embedding, inputs.expand(len(texts), -1)):
                teacher.net(z, torch.tensor([timestep]), cond, network=network)
    finally:
        handle.remove()
    return calls, tensors, predictions
