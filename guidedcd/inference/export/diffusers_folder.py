"""A student as a diffusers folder, with the pipeline file that samples from it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.errors import GuidedCDError
from guidedcd.files import write_json
from guidedcd.inference.export import few_step_pipeline, merged_student
from guidedcd.inference.export.self_test import compare, repeated
from guidedcd.inference.export.writing import readable, save_module, save_text
from guidedcd.inference.pipeline import StudentPipeline
from guidedcd.models.checkpoints.open_clip_tokens import ClipTokens, write_tokenizer

_SCRIPT = """
sys.path.insert(0, folder)
from pipeline import FewStepPipeline
pipe = FewStepPipeline.from_pretrained(folder)
pipe.set_progress_bar_config(disable=True)
shared = {"latents": given["latents"], "noises": given["noises"], "output_type": "latent"}
shared["num_inference_steps"] = options["steps"]
out["latents"] = pipe(options["prompts"], **shared).frames
out["prompt_embeds"] = pipe.encode_text(options["prompts"])
"""

USAGE = """
from diffusers import DiffusionPipeline           # pipeline.py needs torch, diffusers and transformers; read it first

pipe = DiffusionPipeline.from_pretrained("FOLDER", custom_pipeline="FOLDER/pipeline.py", trust_remote_code=True)
video = pipe("a red ball rolls to the right", num_inference_steps=4, guidance_scale=8.5).frames[0]
# (F, H, W, 3) in [0, 1]
"""


def write_folder(trained: StudentPipeline, folder: Path) -> str:
    """Write the folder and test it; a line about the result.

    Raises:
        GuidedCDError: The teacher has parts that this format cannot hold, or the self-test fails.
    """
    teacher = trained.teacher
    network = merged_student.merged_network(trained.student)
    unet = merged_student.stock(network, merged_student.composite(merged_student.projection(network)))
    save_module(unet, folder / "unet")
    if teacher.vae is None:
        raise GuidedCDError("this teacher has no autoencoder, which a diffusers folder needs")
    save_module(teacher.vae, folder / "vae")
    tokenizer, cleaned = write_text(teacher.text, folder)
    write_schedule(teacher.schedule, folder / "scheduler")
    settings = {**merged_student.defaults(trained), "clean_text": cleaned}
    import diffusers

    write_json(
        folder / "model_index.json",
        {
            "_class_name": "FewStepPipeline",
            "_diffusers_version": diffusers.__version__,
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", tokenizer],
            "unet": ["diffusers", type(unet).__name__],
            "vae": ["diffusers", type(teacher.vae).__name__],
            **settings,
        },
    )
    shutil.copyfile(few_step_pipeline.__file__, folder / "pipeline.py")
    made = merged_student.short_sample(trained)
    found = repeated(
        _SCRIPT, folder, made.inputs, {"prompts": list(merged_student.TEXTS), "steps": merged_student.STEPS}
    )
    error = compare({"latents": made.result, "prompt_embeds": made.prompt_embeds}, found, 1e-3)
    return f"a fresh process without guidedcd samples the same latents, largest error {error:.1g} of the magnitude"


def write_text(text: Any, folder: Path) -> tuple[str, bool]:
    """Write the text encoder and its tokenizer.

    Returns:
        The tokenizer's class, and whether prompts are to be cleaned first.

    Raises:
        GuidedCDError: The text side is no CLIP text model.
    """
    model = getattr(text, "model", None)
    if type(model).__name__ != "CLIPTextModel":
        raise GuidedCDError(
            "a diffusers folder needs a CLIP text model, which this teacher has not; "
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
        GuidedCDError: It is no schedule that a DDIM scheduler has.
    """
    from diffusers import DDIMScheduler

    kinds = {"eps": "epsilon", "v": "v_prediction"}
    if schedule.prediction not in kinds:
        raise GuidedCDError(f"a diffusers folder cannot hold a student of {schedule.prediction} prediction yet")
    common = {
        "num_train_timesteps": len(schedule),
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": kinds[schedule.prediction],
    }
    wanted = schedule.alphas_cumprod.cpu()
    for options in _formulas(wanted):
        made = DDIMScheduler(**common, **options)
        if torch.equal(made.alphas_cumprod, wanted):
            break
    made.save_pretrained(folder)
    readable(folder)


def _formulas(abar: Tensor) -> list[dict[str, Any]]:
    """Ways to describe a table, the plainest first; the last always fits, up to rounding."""
    exact = abar.double()
    betas = 1 - torch.cat([exact[:1], exact[1:] / exact[:-1]])
    ends = {"beta_start": float(f"{float(betas[0]):.3g}"), "beta_end": float(f"{float(betas[-1]):.3g}")}
    formulas: list[dict[str, Any]] = [{"beta_schedule": kind, **ends} for kind in ("scaled_linear", "linear")]
    return [*formulas, {"trained_betas": betas.tolist()}]
