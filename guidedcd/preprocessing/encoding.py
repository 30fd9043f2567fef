"""Clean latents and conditioning of clips: encoded by the teacher, or from what a clip has of them already.

Legend: V clips; latents (C, F, h, w).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from guidedcd.data.clips import Clip
from guidedcd.errors import GuidedCDError
from guidedcd.models.teachers.protocol import Cond, Teacher


def clean_latents(teacher: Teacher, clips: Sequence[Clip], batch_size: int) -> Tensor:
    """Latents of clips (V, C, F, h, w), float32, on the teacher's device.

    Args:
        teacher: Encodes the clips that have no latents.
        clips: The clips, at least one.
        batch_size: Clips of one pass of the VAE.

    Raises:
        GuidedCDError: Clips have latents, and the teacher has no method `scaled`.
    """
    latents: dict[int, Tensor] = {}
    plain = [number for number, clip in enumerate(clips) if clip.latents is None]
    for start in range(0, len(plain), batch_size):
        numbers = plain[start : start + batch_size]
        videos = torch.stack([video for number in numbers if (video := clips[number].video) is not None])
        latents.update(zip(numbers, teacher.encode(videos.to(teacher.device)).float(), strict=True))
    scaled: Callable[[Tensor], Tensor] | None = getattr(teacher, "scaled", None)
    for number, clip in enumerate(clips):
        if clip.latents is None:
            continue
        if scaled is None:
            raise GuidedCDError(
                f"the clips of dataset '{clip.dataset}' are latents, and this teacher takes videos only: it has no "
                "method `scaled`."
            )
        latents[number] = scaled(clip.latents[None].to(teacher.device).float())[0]
    return torch.stack([latents[number] for number in range(len(clips))])


def conditioning(teacher: Teacher, clips: Sequence[Clip]) -> Cond:
    """Conditioning of the captions of clips, first dimension V, on the teacher's device.

    A caption that is embedded already is embedded again if the teacher has no method `conditioning`, for example
    because it reads the padding of captions, which `prompt_embeds` do not have.

    Raises:
        GuidedCDError: The embeddings of clips do not fit the teacher.
    """
    convert: Callable[[Sequence[Tensor]], Cond] | None = getattr(teacher, "conditioning", None)
    embedded = [number for number, clip in enumerate(clips) if clip.prompt_embeds is not None and convert is not None]
    if not embedded or convert is None:
        return teacher.embed([clip.caption for clip in clips])
    cond = convert([embeds for number in embedded if (embeds := clips[number].prompt_embeds) is not None])
    others = [number for number in range(len(clips)) if number not in embedded]
    if not others:
        return cond
    rest = teacher.embed([clips[number].caption for number in others])
    order = torch.tensor([*embedded, *others]).argsort()
    return {key: torch.cat([cond[key].to(value), value])[order.to(value.device)] for key, value in rest.items()}
