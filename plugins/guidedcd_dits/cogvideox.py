"""CogVideoX: a transformer that joins text and video tokens, v-prediction, a schedule that ends in pure noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from guidedcd.acceleration.precision import computing_dtype
from guidedcd.devices import dtype_of
from guidedcd.errors import GuidedCDError
from guidedcd.models.teachers.protocol import Cond
from guidedcd.models.teachers.scheduler_sampler import SchedulerSampler
from guidedcd.models.teachers.transformer import TransformerTeacher
from guidedcd_dits import CogVideoXConfig
from guidedcd_dits.folder import PipelineFolder
from guidedcd_dits.lora_files import LoraTeacher
from guidedcd_dits.sizes import Sizes
from guidedcd_dits.text import PaddedText


class CogVideoXTeacher(LoraTeacher, TransformerTeacher):
    """CogVideoX 1.0 and 1.5; latents are (B, C, F, h, w) here and (B, F, C, h, w) in the network."""

    lora_pipeline = "CogVideoXPipeline"
    time_embedding = "time_embedding"
    blocks = ("CogVideoXBlock",)
    decoder_layers = ("CogVideoXSpatialNorm3D",)

    def scaled(self, z: Tensor) -> Tensor:
        """Latents as `TransformerTeacher.scaled`; padding of the geometry repeats the first latent frame."""
        z = super().scaled(z)
        return torch.cat([z[:, :, :1].expand(-1, -1, self.geometry.latent_padding, -1, -1), z], dim=2)

    @property
    def frames_together(self) -> int:
        """The number of latent frames that share one group norm."""
        return int(self._autoencoder.num_latent_frames_batch_size)

    def decoder_step(self, latents: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Decode the next latent frames in the autoencoder's own pieces; the state is its cache of convolutions."""
        vae, together = self._autoencoder, self.frames_together
        outputs, start = [], 0
        while start < latents.shape[2]:
            stop = start + together + (latents.shape[2] % together if state is None else 0)
            own = latents[:, :, start:stop]
            own = own if vae.post_quant_conv is None else vae.post_quant_conv(own)
            output, state = vae.decoder(own, conv_cache=state)
            outputs.append(output)
            start = stop
        return torch.cat(outputs, dim=2), state

    def normalized(self, z: Tensor) -> Tensor:
        """Z times the scaling factor."""
        return z * self._autoencoder.config.scaling_factor

    def denormalized(self, z: Tensor) -> Tensor:
        """Z over the scaling factor."""
        return 1 / self._autoencoder.config.scaling_factor * z

    def predict(self, network: Any, z: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """The v-prediction, like `z`."""
        output: Tensor = network(
            hidden_states=z.transpose(1, 2),
            encoder_hidden_states=cond["prompt_embeds"].to(computing_dtype(network)),
            timestep=time,
            image_rotary_emb=self._rotary(network, z),
            return_dict=False,
        )[0]
        return output.transpose(1, 2)

    def sampler(self, steps: int) -> SchedulerSampler:
        """The scheduler of `CogVideoXPipeline` with `steps` steps."""
        from diffusers import CogVideoXDPMScheduler

        kind = _DPMSampler if isinstance(self.scheduler, CogVideoXDPMScheduler) else SchedulerSampler
        return kind(self.scheduler, steps, self.device)

    def _rotary(self, network: Any, z: Tensor) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines of the positions of tokens; None for networks with other positions (2B)."""
        config = network.config
        if not config.use_rotary_positional_embeddings:
            return None
        from diffusers.models.embeddings import get_3d_rotary_pos_embed

        frames, height, width = z.shape[2:]
        patch, long = config.patch_size, config.patch_size_t
        grid = (height // patch, width // patch)
        base = (config.sample_height // patch, config.sample_width // patch)
        options: dict[str, Any]
        if long is None:
            from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

            options = {"crops_coords": get_resize_crop_region_for_grid(grid, base[1], base[0]), "temporal_size": frames}
        else:
            options = {
                "crops_coords": None,
                "temporal_size": (frames + long - 1) // long,
                "grid_type": "slice",
                "max_size": base,
            }
        cosines, sines = get_3d_rotary_pos_embed(
            embed_dim=config.attention_head_dim, grid_size=grid, device=z.device, **options
        )
        return cosines, sines


class _DPMSampler(SchedulerSampler):
    """`CogVideoXDPMScheduler`, whose step takes the prediction and the time of the step before."""

    before: Tensor | None = None

    def step(self, index: int, output: Tensor, z: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Latents after step `index`, like `z`; noise is drawn in the pipeline's layout (B, F, C, h, w)."""
        times = self.times
        latents: Tensor
        latents, self.before = self.scheduler.step(
            output.transpose(1, 2),
            self.before,
            times[index],
            times[index - 1] if index else None,
            z.transpose(1, 2),
            generator=generators,
            return_dict=False,
        )
        return latents.transpose(1, 2)


def cogvideox(config: CogVideoXConfig, *, weights: bool = True) -> CogVideoXTeacher:
    """Read a folder of a `CogVideoXPipeline`; without weights its shapes alone.

    Raises:
        GuidedCDError: The folder is missing, of another family or another kind of model, or the size does not fit.
    """
    parts = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
    folder = PipelineFolder.open(config.path, "CogVideoXPipeline", parts, dtype=dtype_of(config.dtype), weights=weights)
    network = folder.model("transformer", "CogVideoXTransformer3DModel")
    vae = folder.model("vae", "AutoencoderKLCogVideoX")
    options = network.config
    if options.ofs_embed_dim is not None:
        raise folder.refused(
            "transformer", "ofs_embed_dim", options.ofs_embed_dim, "null: models from images to videos are not read"
        )
    length = folder.number("transformer", options, "max_text_seq_length", above=0)
    folder.number("vae", vae.config, "scaling_factor", above=0)
    spatial = 2 ** (len(vae.config.block_out_channels) - 1)
    sizes = Sizes(
        teacher="cogvideox",
        channels=options.in_channels,
        temporal=int(vae.config.temporal_compression_ratio),
        spatial=spatial,
        patch=(options.patch_size_t or 1, options.patch_size, options.patch_size),
        odd=True,
        usual=(options.sample_frames, options.sample_height * spatial, options.sample_width * spatial),
    )
    geometry = sizes.geometry(config, config.fps)
    if options.use_learned_positional_embeddings and geometry.latent_shape[2:] != (
        options.sample_height,
        options.sample_width,
    ):
        raise GuidedCDError(
            f"cogvideox: the learned positions of {folder.folder} are those of videos of height {sizes.usual[1]} and "
            f"width {sizes.usual[2]}, not {geometry.height} and {geometry.width}. Use that size."
        )
    scheduler = folder.scheduler()
    schedule = folder.schedule(scheduler)
    if schedule.prediction == "flow" or getattr(scheduler, "init_noise_sigma", 1.0) != 1.0:
        raise folder.refused(
            "scheduler",
            "_class_name",
            type(scheduler).__name__,
            "a scheduler that neither scales latents nor is of a flow model, such as CogVideoXDDIMScheduler",
        )
    return CogVideoXTeacher(
        network=network,
        vae=vae,
        text=PaddedText(folder.text_encoder(), folder.tokenizer(), int(length)),
        schedule=schedule,
        geometry=geometry,
        scheduler=scheduler,
        decode=config.decode,
    )
