"""Wan: a flow-matching transformer, two experts of one network in Wan 2.2 A14B, and times for each token in TI2V 5B."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from guidedcd.acceleration import attention_backend
from guidedcd.acceleration.activation_checkpointing import Activated
from guidedcd.acceleration.autoencoders import LayerPaths
from guidedcd.acceleration.convolutions import convolution
from guidedcd.acceleration.precision import computing_dtype
from guidedcd.devices import dtype_of
from guidedcd.documents import is_number
from guidedcd.errors import GuidedCDError
from guidedcd.models.teachers.protocol import Cond
from guidedcd.models.teachers.scheduler_sampler import SchedulerSampler
from guidedcd.models.teachers.transformer import TransformerTeacher, channels
from guidedcd_dits import WanConfig
from guidedcd_dits.folder import PipelineFolder
from guidedcd_dits.lora_files import LoraTeacher
from guidedcd_dits.sizes import Sizes
from guidedcd_dits.text import TrimmedText

NETWORK = "WanTransformer3DModel"
USUAL = ((81, 480, 832), 16.0)
"""Frames, height, width and frame rate of `WanPipeline`."""
USUAL_5B = ((121, 704, 1280), 24.0)
"""The same of TI2V 5B, whose pipeline has `expand_timesteps`."""


def _convolution(self: Any, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
    """As the stock causal convolution, which copies its input to add zeros around it; a convolution adds them itself.

    Args:
        self: The stock layer, whose `_padding` has the zeros on both sides of width, height and time.
        x: (B, C, F, H, W).
        cache_x: The frames before `x` (B, C, f, H, W), of which at most as many as the padding over time.
    """
    wide, _, tall, _, before, _ = self._padding
    if cache_x is not None and before > 0:
        x = torch.cat([cache_x, x], dim=2)
        before -= cache_x.shape[2]
    if before > 0:
        x = nn.functional.pad(x, (0, 0, 0, 0, before, 0))
    return convolution(x, self.weight, (self.stride, (0, tall, wide), self.dilation, self.groups), self.bias)


def _attention(self: Any, x: Tensor) -> Tensor:
    """As the stock block, with the kernel that is fastest for its heads, which are too wide for most."""
    stock: Callable[[Any, Tensor], Tensor] = type(self).forward
    if not attention_backend.tries(x):
        return stock(self, x)
    order = attention_backend.order_of(type(self), [x], False, lambda: stock(self, x))
    with attention_backend.first(order):
        return stock(self, x)


class WanTeacher(LoraTeacher, TransformerTeacher):
    """Wan 2.1 and 2.2. With two experts, each predicts at its own noise levels; a student is a copy of `network`."""

    text: TrimmedText
    lora_pipeline = "WanPipeline"
    time_embedding = "condition_embedder.time_embedder"
    blocks = ("WanTransformerBlock",)
    decoder_norms: ClassVar[Activated] = {
        "WanResidualBlock": (("norm1", "norm2"), "nonlinearity"),
        "WanDecoder3d": (("norm_out",), "nonlinearity"),
        "WanEncoder3d": (("norm_out",), "nonlinearity"),
    }
    autoencoder_paths: ClassVar[LayerPaths] = {"WanCausalConv3d": _convolution, "WanAttentionBlock": _attention}

    def __init__(
        self,
        *,
        scheduler: Any,
        expand_timesteps: bool = False,
        other: nn.Module | None = None,
        expert: str = "high",
        boundary: float = 0.0,
        **parts: Any,
    ) -> None:
        """Combine the networks.

        Args:
            scheduler: The scheduler of its pipeline.
            expand_timesteps: Whether the network receives a time for each token.
            other: The expert that is not `network`; None if there is one network.
            expert: Which one `network` is: "high" or "low".
            boundary: The smallest time at which the expert of high noise predicts.
            parts: Arguments of `LatentTeacher`.
        """
        super().__init__(scheduler=scheduler, **parts)
        self.expand_timesteps = expand_timesteps
        self.other, self.expert, self.boundary = other, expert, boundary
        self.requires_grad_(False).train(False)

    @property
    def noise_range(self) -> tuple[float, float]:
        """The part of the grid at which `network` predicts: all of it without another expert."""
        times = self.schedule.network_time(torch.arange(len(self.schedule)))
        boundary = round(float((times < self.boundary).float().mean()), 3)
        if self.other is None:
            return 0.0, 1.0
        return (boundary, 1.0) if self.expert == "high" else (0.0, boundary)

    def normalized(self, z: Tensor) -> Tensor:
        """(z - mean) / std by channel."""
        config = self._autoencoder.config
        return (z - channels(config.latents_mean, z)) * (1.0 / channels(config.latents_std, z))

    def denormalized(self, z: Tensor) -> Tensor:
        """z std + mean by channel."""
        config = self._autoencoder.config
        return z / (1.0 / channels(config.latents_std, z)) + channels(config.latents_mean, z)

    def net(
        self, z: Tensor, t: Tensor, cond: Cond, timestep_cond: Tensor | None = None, network: nn.Module | None = None
    ) -> Tensor:
        """The prediction, as `TransformerTeacher.net`, of each row by the expert of its time.

        A `network` takes the place of the expert that it was copied from. The teacher's own expert always
        predicts the rows of the other expert: they anchor the consistency of a student at the boundary.
        """
        own = self.network if network is None else network
        if self.other is None or z.is_meta:
            return super().net(z, t, cond, timestep_cond, own)
        times = self.schedule.network_time(t).expand(z.shape[0])
        others = self._are_others(times)
        if not bool(others.any()):
            return super().net(z, t, cond, timestep_cond, own)
        learns = torch.is_grad_enabled() and any(weight.requires_grad for weight in own.parameters())
        if bool(others.all()) and not learns:
            return super().net(z, t, cond, timestep_cond, self.other)
        # A network in training predicts all rows, even if it owns none of them: its gradient is then zero, not missing.
        output = super().net(z, t, cond, timestep_cond, own)
        some = {name: value[others] for name, value in cond.items()}
        return output.index_put((others,), super().net(z[others], times[others].float(), some, None, self.other))

    def network_at(self, t: Tensor) -> nn.Module:
        """The expert that predicts at timesteps `t` (B,).

        Raises:
            GuidedCDError: They are at noise levels of both experts.
        """
        if self.other is None or t.is_meta:
            return self.network
        others = self._are_others(self.schedule.network_time(t))
        if bool(others.all()):
            return self.other
        if bool(others.any()):
            raise GuidedCDError(
                "the timesteps of one pass are at noise levels of both experts, so that an energy of attention cannot "
                "read one network. Draw those of one expert, with --preprocess.noise-range."
            )
        return self.network

    def predict(self, network: Any, z: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """The velocity, like `z`."""
        if self.expand_timesteps:
            frames, tall, wide = (size // patch for size, patch in zip(z.shape[2:], _patch(network), strict=True))
            time = time[:, None].expand(-1, frames * tall * wide)
        text = cond["prompt_embeds"].to(computing_dtype(network))
        velocity: Tensor = network(z, time, text, return_dict=False)[0]
        return velocity

    def conditioning(self, prompt_embeds: Sequence[Tensor]) -> Cond:
        """Conditioning of captions whose own tokens were embedded already (L_i, D) each."""
        return self.text.conditioning(prompt_embeds)

    def decoder_step(self, latents: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Decode the next latent frames one by one; the state is the decoder's cache of features."""
        vae = self._autoencoder
        decoder = vae.decoder
        convolutions = sum(type(module).__name__ == "WanCausalConv3d" for module in decoder.modules())
        cache = [None] * convolutions if state is None else list(state)
        outputs = [
            decoder(one, feat_cache=cache, feat_idx=[0], first_chunk=state is None and index == 0)
            for index, one in enumerate(vae.post_quant_conv(latents).split(1, dim=2))
        ]
        return torch.cat(outputs, dim=2), cache

    def decoder_output(self, outputs: Tensor) -> Tensor:
        """Patches as pixels, clamped."""
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        patch = self._autoencoder.config.patch_size
        return (outputs if patch is None else unpatchify(outputs, patch_size=patch)).clamp(-1, 1)

    def _encoded(self, pixels: Tensor) -> Tensor:
        """As that of `TransformerTeacher`; the stock autoencoder takes 4 frames at a time after the first."""
        z, frames = super()._encoded(pixels), pixels.shape[2]
        if z.shape[2] != (frames - 1) // self.geometry.temporal_compression + 1:
            fewer = (frames - 1) // 4 * 4 + 1
            raise GuidedCDError(
                f"this autoencoder encodes the first frame and then 4 at a time, and would cut {frames} frames to "
                f"{fewer}. Use {fewer} or {fewer + 4}."
            )
        return z

    def sampler(self, steps: int) -> SchedulerSampler:
        """The scheduler of `WanPipeline` with `steps` steps."""
        sampler = SchedulerSampler(self.scheduler, steps, self.device)
        if hasattr(sampler.scheduler, "set_begin_index"):  # as the pipeline: rounded times may repeat
            sampler.scheduler.set_begin_index(0)
        return sampler

    def _are_others(self, times: Tensor) -> Tensor:
        """Whether the other expert predicts at each of the network's times (B,)."""
        return (times >= self.boundary) != (self.expert == "high")

    def networks(self) -> dict[str, nn.Module]:
        """The other expert, if there is one."""
        return {} if self.other is None else {"other": self.other}

    def traits(self) -> dict[str, Any]:
        """Whether times are given by token, and where the experts change."""
        two = {} if self.other is None else {"expert": self.expert, "boundary": self.boundary}
        return {"expand_timesteps": self.expand_timesteps, **two}


def wan(config: WanConfig, *, weights: bool = True) -> WanTeacher:
    """Read a folder of a `WanPipeline`; without weights its shapes alone.

    Raises:
        GuidedCDError: The folder is missing or of another family, an expert is missing, or the size does not fit.
    """
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    parts = ("transformer", "transformer_2", "vae", "text_encoder", "tokenizer", "scheduler")
    folder = PipelineFolder.open(config.path, "WanPipeline", parts, dtype=dtype_of(config.dtype), weights=weights)
    network, other = _experts(folder, config.expert)
    vae = folder.model("vae", "AutoencoderKLWan")
    _check_autoencoder(folder, vae.config)
    expanded = bool(folder.index.get("expand_timesteps"))
    usual, fps = USUAL_5B if expanded else USUAL
    sizes = Sizes(
        teacher="wan",
        channels=network.config.in_channels,
        temporal=vae.config.scale_factor_temporal,
        spatial=vae.config.scale_factor_spatial,
        patch=_patch(network),
        usual=usual,
    )
    geometry = sizes.geometry(config, config.fps or fps)
    scheduler = folder.scheduler()
    schedule = folder.schedule(scheduler)
    if schedule.prediction != "flow":
        raise GuidedCDError(
            f"wan: the scheduler {type(scheduler).__name__} of {folder.folder} is none of a flow model; Wan has "
            "FlowMatchEulerDiscreteScheduler, or UniPCMultistepScheduler with flow_prediction."
        )
    return WanTeacher(
        network=network,
        other=other,
        expert=config.expert,
        boundary=0.0 if other is None else folder.index["boundary_ratio"] * scheduler.config.num_train_timesteps,
        expand_timesteps=expanded,
        scheduler=scheduler,
        vae=vae,
        text=TrimmedText(folder.text_encoder(), folder.tokenizer(), config.text_length, prompt_clean),
        schedule=schedule,
        geometry=geometry,
        decode=config.decode,
    )


def _experts(folder: PipelineFolder, expert: str) -> tuple[Any, Any]:
    """The expert of which a student is a copy, and the other one or None."""
    has_two = folder.has("transformer_2") and folder.index.get("boundary_ratio") is not None
    if not has_two and expert == "low":
        missing = "transformer_2" if not folder.has("transformer_2") else "boundary_ratio"
        raise GuidedCDError(
            f"wan: {folder.folder} has one expert only: its model_index.json names no {missing}. Use "
            "--teacher.wan.expert high, or a folder of Wan 2.2 A14B."
        )
    if has_two:
        folder.number("", folder.index, "boundary_ratio", above=0, below=1)
    high = folder.model("transformer", NETWORK)
    if not has_two:
        return high, None
    low = folder.model("transformer_2", NETWORK)
    return (high, low) if expert == "high" else (low, high)


def _check_autoencoder(folder: PipelineFolder, config: Any) -> None:
    """Raise unless the configuration has numbers for its compression, and a mean and deviation of each channel."""
    for key in ("scale_factor_temporal", "scale_factor_spatial"):
        folder.number("vae", config, key, above=0)
    for key, bound in (("latents_mean", -inf), ("latents_std", 0.0)):
        values = config[key]
        numbers = isinstance(values, list | tuple) and all(is_number(value) and value > bound for value in values)
        if not numbers or len(values) != config.z_dim:
            kind = "numbers" if bound < 0 else "numbers above 0"
            raise folder.refused("vae", key, values, f"{config.z_dim} {kind}, one of each latent channel")


def _patch(network: Any) -> tuple[int, int, int]:
    frames, height, width = network.config.patch_size
    return int(frames), int(height), int(width)
