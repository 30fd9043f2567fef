"""A student as a diffusers folder, with the pipeline file that samples from it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.errors import GuidedCDError
from guidedcd.inference.export import few_step_pipeline, merged_student
from guidedcd.inference.export.self_test import assert_close, run_clean
from guidedcd.inference.export.writing import ddim_scheduler, make_readable, save_model, save_text, write_index
from guidedcd.inference.pipeline import StudentPipeline
from guidedcd.models.checkpoints.open_clip_tokens import ClipTokens, write_tokenizer
from guidedcd.models.teachers.latent import LatentTeacher

_SCRIPT = """
import diffusers
pipe = diffusers.DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
noise = {"latents": inputs["latents"], "noises": inputs["noises"]}
out["latents"] = pipe(options["prompts"], num_inference_steps=options["steps"], output_type="latent", **noise).frames
out["prompt_embeds"] = pipe.encode_text(options["prompts"])
"""

USAGE = """
from diffusers import DiffusionPipeline           # pipeline.py needs torch, diffusers and transformers; read it first

pipe = DiffusionPipeline.from_pretrained("FOLDER", trust_remote_code=True)
video = pipe(PROMPT, num_inference_steps=STEPS, guidance_scale=SCALE).frames[0]
# (F, H, W, 3) in [0, 1]
"""


def write_folder(trained: StudentPipeline, folder: Path) -> str:
    """Write the folder and test it.

    Returns:
        A clause about the test, for the console and the model card.

    Raises:
        GuidedCDError: The teacher has parts that a diffusers folder cannot contain, or the self-test fails.
    """
    teacher = cast(LatentTeacher, trained.teacher)  # others have no `vae` to export
    network = merged_student.merged_network(trained.student)
    unet = merged_student.stock(network, merged_student.composite(merged_student.projection(network)))
    save_model(unet, folder / "unet")
    if teacher.vae is None:
        raise GuidedCDError("this teacher has no autoencoder, which a diffusers folder needs")
    save_model(teacher.vae, folder / "vae")
    tokenizer, clean_text = write_text(teacher.text, folder)
    write_schedule(teacher.schedule, folder / "scheduler")
    write_index(
        folder,
        ["pipeline", "FewStepPipeline"],  # pipeline.py of the folder
        tokenizer=tokenizer,
        unet=type(unet).__name__,
        vae=type(teacher.vae).__name__,
        settings={**merged_student.defaults(trained), "clean_text": clean_text},
    )
    shutil.copyfile(few_step_pipeline.__file__, folder / "pipeline.py")
    sample = merged_student.short_sample(trained)
    options = {"prompts": list(merged_student.TEXTS), "steps": merged_student.STEPS}
    results = run_clean(_SCRIPT, folder, sample.inputs, options)
    error = assert_close({"latents": sample.result, "prompt_embeds": sample.prompt_embeds}, results, 1e-3)
    return f"a fresh process without guidedcd samples the same latents, largest relative error {error:.1g}"


def usage(trained: StudentPipeline) -> str:
    """Python code that loads the folder and samples as in the run's evaluation, for the model card."""
    return merged_student.as_evaluated(USAGE, trained)


def write_text(text: Any, folder: Path) -> tuple[str, bool]:
    """Write the text encoder and its tokenizer.

    Returns:
        The class name of the tokenizer, and whether prompts are cleaned before tokenization.

    Raises:
        GuidedCDError: The text encoder is no CLIP text model.
    """
    model: Any = getattr(text, "model", None)  # a `CLIPTextModel`, or the error below
    if type(model).__name__ != "CLIPTextModel":
        raise GuidedCDError(
            "a diffusers folder needs a CLIP text model, and this teacher has another one; "
            "export it with --format t2v-turbo-v2 or --format lora"
        )
    save_text(model, folder / "text_encoder")
    length = model.config.max_position_embeddings
    if isinstance(text, ClipTokens):
        write_tokenizer(folder / "tokenizer", model.config.vocab_size, length)
        return "CLIPTokenizer", True
    if hasattr(text, "save_tokenizer"):
        return text.save_tokenizer(folder / "tokenizer"), False
    tokenizer = text.tokenizer
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(folder / "tokenizer")
        return type(tokenizer).__name__, False
    raise GuidedCDError(f"the tokenizer {type(tokenizer).__name__} cannot be written as a file")


def write_schedule(schedule: NoiseSchedule, folder: Path) -> None:
    """Write a DDIM scheduler with the schedule's noise levels, by formula where one gives the same numbers.

    Raises:
        GuidedCDError: A DDIM scheduler does not support the schedule's type of prediction.
    """
    kinds = {"eps": "epsilon", "v": "v_prediction"}
    if schedule.prediction not in kinds:
        raise GuidedCDError(f"a diffusers folder does not support students of {schedule.prediction} prediction yet")
    abar = schedule.alphas_cumprod.cpu()
    for betas in _formulas(abar):
        scheduler = ddim_scheduler(len(schedule), kinds[schedule.prediction], **betas)
        if torch.equal(scheduler.alphas_cumprod, abar):
            break
    scheduler.save_pretrained(folder)
    make_readable(folder)


def _formulas(abar: Tensor) -> list[dict[str, Any]]:
    """Arguments of a scheduler that may have this table, the shortest first; the last is exact up to rounding."""
    exact = abar.double()
    betas = 1 - torch.cat([exact[:1], exact[1:] / exact[:-1]])
    ends = {"beta_start": float(f"{float(betas[0]):.3g}"), "beta_end": float(f"{float(betas[-1]):.3g}")}
    formulas: list[dict[str, Any]] = [{"beta_schedule": kind, **ends} for kind in ("scaled_linear", "linear")]
    return [*formulas, {"trained_betas": betas.tolist()}]
