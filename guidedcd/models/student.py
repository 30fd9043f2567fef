"""The student: a trainable copy of the teacher's denoiser with inputs for omega and each energy's strength.

Legend: B batch, C channels, F frames, H/W latent size, E energies.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from guidedcd.acceleration.activation_checkpointing import checkpoint_layers
from guidedcd.config import sections
from guidedcd.diffusion.embeddings import EMBEDDING, guidance_embedding
from guidedcd.documents import check_form, open_regular, read_json
from guidedcd.errors import GuidedCDError, unreadable
from guidedcd.files import file_digest, replacing, write_json
from guidedcd.models import initial_lora
from guidedcd.models.adapters import adapter_targets, with_adapters
from guidedcd.models.guidance_inputs import GuidanceProjection, add_guidance_embedding, guidance_inputs
from guidedcd.models.teachers.protocol import Teacher

FORMAT, SCALED = 1, 2
"""Formats of student.json: of UNets, and of networks at whose time embedding the guidance inputs are scaled."""
CHECKSUMS = "checksums.json"
"""SHA-256 of the other files in a student's folder; folders of older versions have it in checkpoints only."""
FORM = {
    "energies": [str],
    "teacher": str,
    "student": {"kind?": str, "rank?": int, "dropout?": float, "ema?": (float, None), "init?": str},
    "init?": str,
}
"""Form of student.json; see `guidedcd.documents`."""


class Student(nn.Module):
    """A trainable copy of a teacher's denoiser; a fresh one equals the teacher bit for bit.

    omega and the energies' inputs enter at the input of a UNet's time embedding (`time_embedding.cond_proj`), as in
    T2V-Turbo-v2; only the outermost new matrix is zero, so the others learn from the second step on. Of any other
    network, the teacher names its `time_embedding`, and they are added to the output of that module.
    """

    _fingerprint: str | None = None
    _time_embedding: str | None = None
    network: Any
    """The trained denoiser: a UNet of diffusers, whose attributes depend on its family."""

    def __init__(
        self,
        teacher: Teacher,
        config: sections.Student | None = None,
        energies: Sequence[str] = (),
        *,
        take: bool = False,
    ) -> None:
        """Copy the teacher's denoiser and add the guidance inputs and adapters.

        Args:
            teacher: Its `network` is copied, its `net` adapts calls; it is not part of the student's state.
            config: Full weights or LoRA, dropout, averaged target.
            energies: Names, in the order of the inputs in `lambdas`; E may be 0.
            take: Use the teacher's `network` itself instead of a copy, which saves memory if the teacher is not used
                any more. The teacher's fingerprint stays the same.
        """
        super().__init__()
        self._teacher = (teacher,)  # in a tuple, so that torch does not take it for a submodule
        self.config = config or sections.Student()
        self.energies = tuple(energies)
        # A teacher may hash its weights only when its fingerprint is read; a trained network would then change it.
        self._fingerprint = teacher.fingerprint() if take else None
        self.network = (teacher.network if take else copy.deepcopy(teacher.network)).requires_grad_(True)
        if self.config.init:
            initial_lora.merge(teacher, self.network, self.config.init)
        set_dropout(self.network, self.config.dropout)
        if self.config.kind == "lora":
            self.network = with_adapters(self.network, self.config.rank, adapter_targets(teacher, self.network))
        self._time_embedding = getattr(teacher, "time_embedding", None)
        _add_conditioning(self.network, len(self.energies), self._time_embedding)
        self.averaged = None
        if self.config.ema is not None:
            self.averaged = copy.deepcopy(self.network).requires_grad_(False)

    @property
    def teacher(self) -> Teacher:
        """The teacher it was copied from."""
        return self._teacher[0]

    @property
    def format(self) -> int:
        """The format in which it is saved."""
        return format_of(self.teacher)

    @property
    def trainable(self) -> list[nn.Parameter]:
        """The parameters that an optimiser updates."""
        return [p for p in self.network.parameters() if p.requires_grad]

    def forward(
        self,
        z: Tensor,
        t: Tensor,
        cond: dict[str, Tensor],
        omega: Tensor | None = None,
        lambdas: Tensor | None = None,
        *,
        averaged: bool = False,
    ) -> Tensor:
        """The student's prediction for `z` (B, C, F, H, W) at `t` (B,), in the teacher's prediction type, like `z`.

        Args:
            z: Noisy latents.
            t: Training timesteps (B,).
            cond: Conditioning with first dimension B.
            omega: Guidance strength (B,); None leaves the guidance inputs out altogether.
            lambdas: Energy inputs (B, E). A student with energies is trained with them: pass zeros for "off".
            averaged: Use the averaged network of `config.ema`.
        """
        if lambdas is not None and lambdas.shape[1] != len(self.energies):
            raise ValueError(f"lambdas has {lambdas.shape[1]} columns; this student has {len(self.energies)} energies")
        if lambdas is not None and not self.energies:
            lambdas = None
        network: Any = self.averaged if averaged else self.network
        guidance = guidance_embedding(omega, lambdas)
        if self._time_embedding is None:
            return self.teacher.net(z, t, cond, timestep_cond=guidance, network=network)
        with guidance_inputs(network, self._time_embedding, guidance):
            return self.teacher.net(z, t, cond, network=network)

    def target(self, *args: Any, **kwargs: Any) -> Tensor:
        """The prediction for the loss's second side, by the averaged network if there is one."""
        return self(*args, **kwargs, averaged=self.averaged is not None)

    def enable_gradient_checkpointing(self, layers: str = "all") -> None:
        """Recompute activations in the backward pass: of "all" layers, "most", or the "temporal" ones alone."""
        blocks = tuple(getattr(self.teacher, "blocks", ()))
        if layers == "all" and not blocks and getattr(self.network, "_supports_gradient_checkpointing", False):
            self.network.enable_gradient_checkpointing()
        else:
            checkpoint_layers(self.network, layers, blocks)

    def save(
        self, folder: Path, weights: Mapping[str, Tensor] | None = None, online: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write `student.json` and `model.safetensors` into `folder`: all weights, or the trained ones with LoRA.

        Args:
            folder: Created if it is missing.
            weights: Trained weights to write instead of the network's own, such as an average.
            online: The weights that `weights` average; written as `online.safetensors`.
        """
        state = self.network.state_dict()
        if self.config.kind == "lora":
            learned = {name for name, p in self.network.named_parameters() if p.requires_grad}
            state = {name: value for name, value in state.items() if name in learned}
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(folder / "model.safetensors", {**state, **(weights or {})})
        if online is not None:
            write_weights(folder / "online.safetensors", {**state, **online})
        meta = {
            "format": self.format,
            "energies": list(self.energies),
            "teacher": self._fingerprint or self.teacher.fingerprint(),
            "student": attrs.asdict(self.config),
        }
        if self.config.init and self.config.kind == "lora":
            meta["init"] = initial_lora.digest(self.config.init)
        write_json(folder / "student.json", meta)

    @classmethod
    def load(cls, folder: Path, teacher: Teacher) -> Student:
        """Read a saved student of the same teacher; in eval mode, on the teacher's device.

        Raises:
            GuidedCDError: The folder contains no student, or one that does not fit this teacher.
        """
        folder = Path(folder)
        meta = read_json(folder / "student.json", {"format": int})
        if meta["format"] != format_of(teacher):
            raise GuidedCDError(f"{folder} was written by another version of guidedcd (format {meta['format']}).")
        check_form(meta, FORM, folder / "student.json")
        names = {field.name for field in attrs.fields(sections.Student)}
        try:
            config = sections.Student(**{k: v for k, v in meta["student"].items() if k in names})
        except ValueError as error:
            raise GuidedCDError(f"{folder / 'student.json'} is damaged: {error.args[0]}.") from None
        if config.kind == "lora" and meta["teacher"] != teacher.fingerprint():
            raise GuidedCDError(
                f"{folder} holds adapters of another teacher. Give the teacher that it was trained with."
            )
        with ThreadPoolExecutor(1) as pool:  # a processor hashes about 1 GB in a second
            comparison = pool.submit(_compare_checksum, folder)
            if config.init and config.kind == "lora":
                initial_lora.check_digest(config.init, meta.get("init"), folder)
            init = config.init if config.kind == "lora" else ""  # all weights are in the folder
            student = cls(teacher, attrs.evolve(config, ema=None, init=init), meta["energies"])
            weights = _read_weights(folder / "model.safetensors")
            comparison.result()
        learned = {name for name, p in student.network.named_parameters() if p.requires_grad}
        own = student.network.state_dict()
        expected = own if config.kind == "full" else learned
        wrong = sorted(set(expected) ^ set(weights)) or sorted(n for n in weights if weights[n].shape != own[n].shape)
        if wrong:
            raise GuidedCDError(
                f"{folder} does not fit this teacher: {len(wrong)} weights differ in name or shape, e.g. {wrong[0]}."
            )
        if whole := sorted(name for name in weights if not weights[name].is_floating_point()):
            raise GuidedCDError(
                f"{folder} holds weights that are whole numbers ({weights[whole[0]].dtype} in {whole[0]}). Quantised "
                "students cannot be read: use the file that was trained."
            )
        student.network.load_state_dict(weights, strict=config.kind == "full")
        student.config = config
        return student.eval()


def format_of(teacher: Teacher) -> int:
    """The format of student.json for students of a teacher."""
    return FORMAT if getattr(teacher, "time_embedding", None) is None else SCALED


def write_checksums(folder: Path, **more: Any) -> None:
    """Write the checksums of all files in a student's folder, and `more` values, to its checksums.json."""
    checksums = {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.name != CHECKSUMS}
    write_json(folder / CHECKSUMS, {**more, "sha256": checksums})


def _compare_checksum(folder: Path) -> None:
    """Compare the weights of a student with their checksum, if the folder has one.

    Raises:
        GuidedCDError: They differ.
    """
    manifest = folder / CHECKSUMS
    if not manifest.exists():
        return
    content = read_json(manifest, {"sha256": {str: str}})
    try:
        differs = content["sha256"].get("model.safetensors") != file_digest(folder / "model.safetensors")
    except PermissionError as error:
        raise unreadable(error, folder / "model.safetensors") from error
    except OSError:
        return  # the error of reading the weights is clearer
    if differs:
        remedy = (
            "Use another checkpoint, or the student of the finished run"
            if "step" in content
            else f"Delete {folder}: the command that trained it makes it again from the newest checkpoint. If you have "
            f"changed the weights yourself, delete {CHECKSUMS} instead"
        )
        raise GuidedCDError(f"{folder} is damaged (the checksum of model.safetensors differs). {remedy}.")


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a student's file.

    Raises:
        GuidedCDError: The file is missing, may not be read, or is damaged.
    """
    try:
        with open_regular(path):  # tells a matter of permissions from damage
            return load_file(path)
    except PermissionError as error:
        raise unreadable(error, path) from error
    except (SafetensorError, OSError) as error:
        raise GuidedCDError(
            f"{path} is damaged ({error}). Delete {path.parent}: the command that trained it makes it again from the "
            "newest checkpoint."
        ) from error


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors; the file appears whole."""
    with replacing(path) as partial:
        save_file({name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}, partial)


def set_dropout(network: nn.Module, p: float) -> None:
    """Set the dropout of the temporal convolutions (0.1 as diffusers hard-codes it) to `p`, and every other to 0."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Dropout):
            module.p = p if "temp_convs" in name else 0.0


def time_embedding(teacher: Teacher) -> Any:
    """The module of a teacher's denoiser that takes the guidance inputs of a student.

    Raises:
        GuidedCDError: It has none, so that no student can be made of it.
    """
    network, path = teacher.network, getattr(teacher, "time_embedding", None)
    if path is None:
        embedding = getattr(network, "time_embedding", None)
        if embedding is None or not hasattr(embedding, "cond_proj"):
            raise GuidedCDError(
                f"{type(network).__name__} has no time embedding that takes guidance inputs; use a UNet teacher, or "
                "let the teacher name the module with its attribute `time_embedding`."
            )
        return embedding
    try:
        return network.get_submodule(path)
    except AttributeError:
        raise GuidedCDError(
            f"{type(network).__name__} has no module '{path}', which its teacher names as the time embedding."
        ) from None


def _add_conditioning(network: nn.Module, energies: int, path: str | None) -> None:
    if path is not None:
        add_guidance_embedding(network, path, energies, EMBEDDING)
        return
    embedding: Any = network.get_submodule("time_embedding")
    first = embedding.linear_1
    projection = GuidanceProjection(first.in_features, EMBEDDING, EMBEDDING * energies)
    nn.init.zeros_(projection.outermost.weight)
    embedding.cond_proj = projection.to(first.weight.device, first.weight.dtype)
