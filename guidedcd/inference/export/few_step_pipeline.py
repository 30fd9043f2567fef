"""Few-step text-to-video sampling of a distilled student, with torch, diffusers and transformers only.

Every exported folder contains this file as pipeline.py:

    pipe = DiffusionPipeline.from_pretrained("FOLDER", trust_remote_code=True)
    video = pipe("a prompt").frames[0]

A video is (F, H, W, 3) in [0, 1]. `num_inference_steps` and `guidance_scale` are by default those of the evaluation of
the student's training run. `guidance_scale` is diffusers' w in u + w (c - u), which is omega + 1 in the notation
of the papers. A student that was trained with energies has one `strength` for each: the trained one, or 0. Guidance
needs no second network call.
Legend: B videos, C latent channels, F frames, H/W pixels, h/w latent size, E energies.
"""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor, nn


@dataclass
class FewStepOutput(BaseOutput):
    """The output of the pipeline."""

    frames: Any
    """Videos (B, F, H, W, 3) in [0, 1], lists of PIL images by video, or latents, depending on `output_type`."""


class FewStepPipeline(DiffusionPipeline):
    """Multistep consistency sampling (arXiv:2303.01469, Algorithm 1) with guidance inputs."""

    model_cpu_offload_seq = "text_encoder->unet->vae"

    # Annotations are classes and not strings, since older diffusers compare them with the parts of a folder.
    def __init__(
        self,
        unet: nn.Module,
        vae: nn.Module,
        text_encoder: nn.Module,
        tokenizer: object,
        scheduler: object,
        energies: Sequence = (),
        strengths: Sequence = (),
        strength_scale: Sequence = (),
        fractions: Sequence = (),
        omega: float = 7.5,
        steps: int = 4,
        origin: int = 200,
        frames: int = 16,
        height: int = 320,
        width: int = 512,
        fps: float = 8,
        clean_text: bool = False,
        repeat_text: bool = False,
    ) -> None:
        """Register the models and the settings of the student's training.

        Args:
            unet: A UNet with `time_cond_proj_dim` = 256 (1 + E).
            vae: `AutoencoderKL`.
            text_encoder: `CLIPTextModel`.
            tokenizer: The tokenizer of the text encoder.
            scheduler: Any diffusers scheduler with `alphas_cumprod`; only that table and its prediction type are used.
            energies: Names (E,).
            strengths: Default strength of each energy (E,).
            strength_scale: Factor of each strength before the embedding (E,).
            fractions: Noisiest fraction of the timesteps at which each strength is an input (E,); elsewhere the input
                is 0.
            omega: Default guidance strength, which is guidance_scale - 1.
            steps: Default number of network calls.
            origin: Number of points of the grid of timesteps.
            frames: Default number of frames.
            height: Default height, pixels.
            width: Default width, pixels.
            fps: Frames per second of the result.
            clean_text: Whether prompts are cleaned as during training.
            repeat_text: Whether the UNet expects one copy of the text per frame.
        """
        super().__init__()
        self.register_modules(unet=unet, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler)
        self.register_to_config(
            energies=list(energies),
            strengths=list(strengths),
            strength_scale=list(strength_scale),
            fractions=list(fractions),
            omega=omega,
            steps=steps,
            origin=origin,
            frames=frames,
            height=height,
            width=width,
            fps=fps,
            clean_text=clean_text,
            repeat_text=repeat_text,
        )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] = "",
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        *,
        strength: float | Sequence[float] | None = None,
        noises: Tensor | None = None,
    ) -> Any:
        """Sample videos.

        Args:
            prompt: One prompt or several (P); the result has B = P * `num_videos_per_prompt` videos.
            height: Height, pixels, a multiple of the autoencoder's factor.
            width: Width, pixels, likewise.
            num_frames: Number of frames.
            num_inference_steps: Number of network calls, 1 to `origin`; by default `steps`.
            guidance_scale: Input of the student, by default `omega` + 1; 1 is no guidance.
            num_videos_per_prompt: Number of videos of each prompt, consecutive in the result.
            generator: Generator of the noise: one, or a list with one per video (B).
            latents: Initial noise (B, C, F, h, w) in place of the generator's.
            prompt_embeds: Text embeddings (P, L, D) in place of `prompt`.
            output_type: "np" or "pt" for videos (B, F, H, W, 3) as an array or a tensor, "pil" for lists of images,
                "latent" for latents (B, C, F, h, w).
            return_dict: Whether to return a `FewStepOutput` or a tuple.
            callback_on_step_end: Called as callback(pipe, step, timestep, tensors) after each step; the tensors that it
                returns replace those of the step.
            callback_on_step_end_tensor_inputs: Names of these tensors: "latents", "prompt_embeds".
            strength: Strength of the energies: one number, or one per energy (E,); 0 is off.
            noises: Noise of each step (S, B, C, F, h, w) in place of the generator's.

        Raises:
            ValueError: An argument is out of range, or the numbers of generators and videos differ.
        """
        config = self.config
        device, dtype = self._execution_device, self.unet.dtype
        self._check(output_type, callback_on_step_end_tensor_inputs)
        steps = config.steps if num_inference_steps is None else num_inference_steps
        times = self.timesteps(steps)
        if prompt_embeds is None:
            prompt_embeds = self.encode_text([prompt] if isinstance(prompt, str) else prompt)
        text = prompt_embeds.to(device, dtype).repeat_interleave(num_videos_per_prompt, dim=0)
        batch = len(text)
        if latents is None:
            latents = draw(self._latent_shape(batch, num_frames, height, width), generator)
        z = latents.to(device, torch.float32)
        omega = float(config.omega) if guidance_scale is None else guidance_scale - 1
        strengths = self._strengths(strength)
        with self.progress_bar(total=steps) as bar:
            for i, t in enumerate(times):
                z = self.consistency(z, self._predict(z, t, text, omega, strengths), t)
                if i < steps - 1:
                    noise = draw(z.shape, generator) if noises is None else noises[i]
                    alpha, sigma = self.levels(times[i + 1])
                    z = alpha * z + sigma * noise.to(z)
                if callback_on_step_end is not None:
                    tensors = {"latents": z, "prompt_embeds": text}
                    tensors = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    changed = callback_on_step_end(self, i, t, tensors) or {}
                    z, text = changed.get("latents", z), changed.get("prompt_embeds", text)
                bar.update()
        frames = z if output_type == "latent" else convert(self.decode(z), output_type)
        self.maybe_free_model_hooks()
        return FewStepOutput(frames=frames) if return_dict else (frames,)

    def _check(self, output_type: str, tensor_inputs: Sequence[str]) -> None:
        """Check the type of output and the names of the callback's tensors."""
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be {', '.join(OUTPUT_TYPES)}: {output_type!r}")
        if unknown := set(tensor_inputs) - {"latents", "prompt_embeds"}:
            raise ValueError(f"callback_on_step_end_tensor_inputs must be latents, prompt_embeds: {sorted(unknown)}")

    def _predict(self, z: Tensor, t: int, text: Tensor, omega: float, strengths: Sequence[float]) -> Tensor:
        """The UNet's prediction at timestep `t`, like `z`, with its guidance inputs."""
        fractions = self.config.fractions
        levels = [omega] + [
            value if torch.tensor(t) >= len(self.alphas) * (1 - fraction) else 0.0
            for value, fraction in zip(strengths, fractions, strict=True)
        ]
        cond = torch.cat([embed(torch.full((len(z),), level)) for level in levels], dim=1)
        return self.unet(
            z.to(self.unet.dtype),
            torch.full((len(z),), t, device=z.device),
            encoder_hidden_states=text.repeat_interleave(z.shape[2], dim=0) if self.config.repeat_text else text,
            timestep_cond=cond.to(z.device, self.unet.dtype),
            return_dict=False,
        )[0].float()

    @property
    def alphas(self) -> Tensor:
        """alpha^2 of every training timestep (T,)."""
        return self.scheduler.alphas_cumprod

    def levels(self, t: int) -> tuple[Tensor, Tensor]:
        """alpha and sigma at a timestep: z = alpha x0 + sigma eps."""
        abar = self.alphas[t].float()
        return abar.sqrt(), (1 - abar).sqrt()

    def timesteps(self, steps: int) -> list[int]:
        """Timesteps, descending: every (origin // steps)-th point of a grid of `origin`, unlike LCMScheduler's."""
        total, origin = len(self.alphas), self.config.origin
        if not 1 <= steps <= origin:
            raise ValueError(f"steps must be 1 to {origin}: {steps}")
        grid = [(i + 1) * (total // origin) - 1 for i in range(origin)]
        return grid[:: -(origin // steps)][:steps]

    def consistency(self, z: Tensor, output: Tensor, t: int) -> Tensor:
        """The consistency function c_skip z + c_out x0, like `z`, with timesteps scaled by 10 and sigma_data 0.5."""
        alpha, sigma = self.levels(t)
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            x0 = (z - sigma * output) / alpha
        elif kind == "v_prediction":
            x0 = alpha * z - sigma * output
        else:
            raise ValueError(f"unknown prediction type {kind}")
        total = torch.tensor((10.0 * t) ** 2 + 0.25)
        return 0.25 / total * z + 10.0 * t / total.sqrt() * x0

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings (B, L, D), without an attention mask for the padding."""
        prompts = [clean(text) for text in prompts] if self.config.clean_text else list(prompts)
        length = self.text_encoder.config.max_position_embeddings
        tokens = self.tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        embeddings = self.text_encoder(input_ids=tokens.input_ids.to(self._execution_device)).last_hidden_state
        return embeddings.to(self.unet.dtype)

    def decode(self, z: Tensor) -> Tensor:
        """Videos (B, F, H, W, 3) in [0, 1], on the CPU, of latents (B, C, F, h, w)."""
        flat = z.transpose(1, 2).flatten(0, 1) / self.vae.config.scaling_factor
        flat = flat + (getattr(self.vae.config, "shift_factor", None) or 0.0)
        pixels = torch.cat([self.vae.decode(frames.to(self.vae.dtype)).sample for frames in flat.split(16)])
        pixels = (pixels.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        return pixels.unflatten(0, (z.shape[0], z.shape[2])).cpu()

    def _latent_shape(self, batch: int, frames: int | None, height: int | None, width: int | None) -> tuple[int, ...]:
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        height, width = height or self.config.height, width or self.config.width
        if height % factor or width % factor:
            raise ValueError(f"height and width must be multiples of {factor}: {height}x{width}")
        channels = self.unet.config.in_channels
        return batch, channels, frames or self.config.frames, height // factor, width // factor

    def _strengths(self, strength: float | Sequence[float] | None) -> list[float]:
        """The input of each energy (E,)."""
        config = self.config
        values: Sequence[float] = config.strengths
        if isinstance(strength, (int, float)):
            values = [strength] * len(config.energies)
        elif strength is not None:
            values = strength
        if len(values) != len(config.energies):
            raise ValueError(f"this student has the energies {list(config.energies)}; give one strength for each")
        return [float(value) * scale for value, scale in zip(values, config.strength_scale, strict=True)]


OUTPUT_TYPES = ("np", "pt", "pil", "latent")


def draw(shape: Sequence[int], generator: torch.Generator | list[torch.Generator] | None) -> Tensor:
    """Normal noise of `shape`, from one generator or from a list with one per video."""
    if not isinstance(generator, list):
        return torch.randn(tuple(shape), generator=generator, device=generator.device if generator else "cpu")
    if len(generator) != shape[0]:
        raise ValueError(f"{len(generator)} generators for {shape[0]} videos: give one, or one per video")
    return torch.cat([draw((1, *shape[1:]), one).cpu() for one in generator])


def convert(videos: Tensor, output_type: str) -> Any:
    """Videos (B, F, H, W, 3) in [0, 1] as an array, a tensor, or lists of PIL images."""
    if output_type == "pt":
        return videos
    if output_type == "np":
        return videos.numpy()
    from PIL import Image

    pixels = (videos * 255).round().to(torch.uint8).numpy()
    return [[Image.fromarray(frame) for frame in video] for video in pixels]


def embed(w: Tensor, width: int = 256) -> Tensor:
    """Sinusoids (B, width) of 1000 w (B,), sines first, float32.

    They are computed on the CPU, for the last bit of a frequency changes the phase.
    """
    half = width // 2
    rate = torch.log(torch.tensor(10000.0)) / (half - 1)
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -rate)
    phase = (w.float() * 1000.0)[:, None] * frequencies[None]
    return torch.cat([phase.sin(), phase.cos()], dim=1)


def clean(text: str) -> str:
    """A prompt as during training: repaired by ftfy where it is installed, without HTML entities, in lower case."""
    try:
        from ftfy import fix_text
    except ImportError:
        pass
    else:
        text = fix_text(text)
    return " ".join(html.unescape(html.unescape(text)).split()).lower()
