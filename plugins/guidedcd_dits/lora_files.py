"""LoRA files of video transformers: every layout in use is read, and those of diffusers, ComfyUI and kohya are written.

An `Adapter` has diffusers' names and no scale: alpha / rank is multiplied into the matrix that is applied second, so
that all programs apply a written file alike. Layouts, and which program reads which: `lora_names` and the facts of
diffusers 0.38 to 0.42, ComfyUI, musubi-tuner, LightX2V and VideoX-Fun.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from guidedcd.documents import read_text
from guidedcd.errors import GuidedCDError
from guidedcd.files import replacing
from guidedcd_dits.lora_names import Family, all_known, family_of

PEFT_METADATA = "lora_adapter_metadata"
SAMPLING_METADATA = "guidedcd_sampling"
NAMES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""Names of files in folders, of PEFT and of diffusers. PEFT's alpha is in adapter_config.json beside its file, whatever
name that has."""
KOHYA = ("lora_unet__", "lora_unet_")
PREFIXES = ("transformer.", "base_model.model.", "model.diffusion_model.", "diffusion_model.", "")
"""Prefixes of keys; the first two precede diffusers' names."""
DOWN, UP, ALPHA, UP_BIAS, WEIGHT, BIAS, MODULATION = "down", "up", "alpha", "up bias", "weight", "bias", "modulation"
SUFFIXES = {
    ".lora_A.default.weight": DOWN,
    ".lora_B.default.weight": UP,
    ".lora_linear_layer.down.weight": DOWN,
    ".lora_linear_layer.up.weight": UP,
    ".lora_A.weight": DOWN,
    ".lora_B.weight": UP,
    ".lora_down.weight": DOWN,
    ".lora_up.weight": UP,
    ".lora.down.weight": DOWN,
    ".lora.up.weight": UP,
    "_lora.down.weight": DOWN,
    "_lora.up.weight": UP,
    ".lora_A": DOWN,
    ".lora_B": UP,
    ".lora_B.bias": UP_BIAS,
    ".lora_B.default.bias": UP_BIAS,
    ".alpha": ALPHA,
    ".diff": WEIGHT,
    ".w_norm": WEIGHT,
    ".diff_b": BIAS,
    ".b_norm": BIAS,
    ".diff_m": MODULATION,
}
"""The kind of tensor of a key, by the end of the key."""


@attrs.frozen(kw_only=True)
class Sampling:
    """How a few-step adapter is sampled, as the file states it."""

    scheduler: str
    """diffusers' class."""
    shift: float
    """Shift of the noise levels of a flow model: sigma = shift s / (1 + (shift - 1) s)."""
    steps: int
    guidance_scale: float = 1.0
    expert: str | None = None
    """The expert of a model with two: "high" or "low" noise."""


@attrs.frozen(eq=False)
class Adapter:
    """Changes of a transformer's weights, with diffusers' names."""

    pairs: Mapping[str, tuple[Tensor, Tensor]]
    """By layer, (down, up): the weight changes by up @ down. Shapes (r, in, ...) and (out, r, ...)."""
    deltas: Mapping[str, Tensor] = attrs.field(factory=dict)
    """Full changes by parameter."""
    sampling: Sampling | None = None

    @property
    def ranks(self) -> dict[str, int]:
        """The rank by layer."""
        return {name: len(down) for name, (down, _) in self.pairs.items()}

    def changes(self) -> dict[str, Tensor]:
        """The change of each parameter, float32."""
        changes = {name: delta.float() for name, delta in self.deltas.items()}
        for name, (down, up) in self.pairs.items():
            product = (up.float().flatten(1) @ down.float().flatten(1)).view(len(up), *down.shape[1:])
            weight = f"{name}.weight"
            changes[weight] = changes[weight] + product.view(changes[weight].shape) if weight in changes else product
        return changes


def read(path: str | Path, network: nn.Module) -> Adapter:
    """The adapter of a safetensors file, or of a folder with one, checked against the parameters of a transformer.

    Raises:
        GuidedCDError: The file is damaged, has another layout, or belongs to another base.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        path = next((path / name for name in NAMES if (path / name).is_file()), path / NAMES[0])
    if not path.is_file():
        raise GuidedCDError(f"there is no LoRA file {path}.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except Exception as error:  # safetensors has its own errors
        raise GuidedCDError(
            f"{path} is no safetensors file ({error}); LoRA files of other formats are not read."
        ) from error
    config = path.parent / "adapter_config.json"
    if config.is_file() and (path.name == NAMES[0] or all(key.startswith(PREFIXES[1]) for key in state)):
        metadata[PEFT_METADATA] = read_text(config)
    adapter = parse(state, family_of(network), metadata, str(path))
    check_base(adapter, network, str(path))
    return adapter


def parse(state: Mapping[str, Tensor], family: Family, metadata: Mapping[str, str], what: str = "the LoRA") -> Adapter:
    """The adapter of a state dict in any layout.

    The scale of a layer is alpha / rank if the file has its `alpha`; otherwise that of PEFT's configuration in the
    metadata, if the names are diffusers'; otherwise 1.

    Raises:
        GuidedCDError: A key is unknown, half of a pair is missing, or matrices do not fit.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        suffix = next((suffix for suffix in SUFFIXES if key.endswith(suffix)), None)
        if suffix is None:
            raise GuidedCDError(f"{what}: the key {key} belongs to no layout of LoRA that guidedcd reads.")
        kind, base = SUFFIXES[suffix], key.removesuffix(suffix)
        if kind == MODULATION:
            kind, base = WEIGHT, f"{base}.modulation"
        if kind in parts.setdefault(base, {}):
            raise GuidedCDError(f"{what}: the {kind} of {base} is there twice, under different names.")
        parts[base][kind] = tensor
    if not parts:
        raise GuidedCDError(f"{what} contains no tensor.")
    rename, prefix = _names(parts, family, what)
    config = _peft_config(metadata, what) if prefix in PREFIXES[:2] else None
    if prefix == PREFIXES[1] and config is None:
        raise GuidedCDError(f"{what} is PEFT's, but its adapter_config.json, which has the alpha, is not beside it.")
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    deltas: dict[str, Tensor] = {}
    for base, kinds in parts.items():
        name = rename(base)
        scale = 1.0
        if DOWN in kinds or UP in kinds:
            scale = _scale(name, kinds, config, prefix in KOHYA, f"{what}: {base}")
            # In float32, because 16 bits would round the product, and types of 8 bits have none.
            pairs[name] = (kinds[DOWN], kinds[UP].float() * scale if scale != 1 else kinds[UP])
        elif ALPHA in kinds or UP_BIAS in kinds:
            raise GuidedCDError(f"{what}: {base} has an alpha or a bias, but no matrices.")
        if WEIGHT in kinds:
            deltas[name if name.endswith("scale_shift_table") else f"{name}.weight"] = kinds[WEIGHT]
        bias = [kinds[BIAS]] if BIAS in kinds else []
        bias += [kinds[UP_BIAS].float() * scale] if UP_BIAS in kinds else []
        if bias:
            deltas[f"{name}.bias"] = sum(bias[1:], bias[0])
    return Adapter(pairs, deltas, _sampling(metadata, what))


def _names(bases: Iterable[str], family: Family, what: str) -> tuple[Callable[[str], str], str]:
    """The function from the names before a key's suffix to diffusers' names, and the prefix that all of them have."""
    bases = list(bases)
    prefix = next(prefix for prefix in (*KOHYA, *PREFIXES) if all(base.startswith(prefix) for base in bases))
    bare = [base.removeprefix(prefix) for base in bases]
    renames: list[Callable[[str], str]] = [
        family.to_diffusers,
        lambda name: family.to_diffusers(family.to_native(name)),
    ]
    if prefix in KOHYA:
        renames = [family.from_kohya]
    elif prefix in PREFIXES[:2]:
        renames = renames[1:]
    renaming = next((rename for rename in renames if all_known(bare, rename)), None)
    if renaming is not None:
        return lambda base: renaming(base.removeprefix(prefix)), prefix
    unknown = next(name for name in bare if not all_known([name], renames[0]))
    raise GuidedCDError(f"{what}: {prefix}{unknown} is no layer of {family.title}; the file belongs to another model.")


def _scale(
    name: str, kinds: Mapping[str, Tensor], config: Mapping[str, Any] | None, is_kohya: bool, what: str
) -> float:
    if DOWN not in kinds or UP not in kinds:
        raise GuidedCDError(f"{what} has one matrix of a pair; the file is incomplete.")
    down, up = kinds[DOWN], kinds[UP]
    if down.dim() < 2 or up.dim() < 2 or not down.numel():
        raise GuidedCDError(f"{what}: {list(down.shape)} and {list(up.shape)} are no shapes of a pair of matrices.")
    rank = len(down)
    if up.shape[1] != rank:
        raise GuidedCDError(f"{what}: matrices of ranks {rank} and {up.shape[1]} do not fit together.")
    if ALPHA in kinds:
        if not kinds[ALPHA].numel():
            raise GuidedCDError(f"{what}: its alpha is empty.")
        alpha = float(kinds[ALPHA].reshape(-1)[0])
        return 1.0 if is_kohya and not alpha else alpha / rank
    if config is None:
        return 1.0
    try:
        # PEFT's rule: a key is a regular expression for the end of a name, and the first one that fits counts.
        patterns = (config.get("alpha_pattern") or {}).items()
        fitting = [value for key, value in patterns if re.fullmatch(rf"(.*\.)?({key})", name)]
        alpha = float((fitting or [config.get("lora_alpha", rank)])[0])
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise GuidedCDError(f"{what}: PEFT's configuration has no alpha of this layer ({error}).") from error
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _peft_config(metadata: Mapping[str, str], what: str) -> dict[str, Any] | None:
    """PEFT's configuration of the transformer in the metadata of diffusers, if it is there."""
    if PEFT_METADATA not in metadata:
        return None
    try:
        values = json.loads(metadata[PEFT_METADATA])
        return {key.removeprefix("transformer."): value for key, value in values.items()}
    except (ValueError, AttributeError) as error:
        raise GuidedCDError(f"{what}: {PEFT_METADATA} in its metadata is no JSON object.") from error


def _sampling(metadata: Mapping[str, str], what: str) -> Sampling | None:
    if SAMPLING_METADATA not in metadata:
        return None
    try:
        return Sampling(**json.loads(metadata[SAMPLING_METADATA]))
    except (ValueError, TypeError) as error:
        raise GuidedCDError(f"{what}: {SAMPLING_METADATA} in its metadata is not what guidedcd writes.") from error


def check_base(adapter: Adapter, network: nn.Module, what: str) -> None:
    """Check that a network has every layer of an adapter, in its shape.

    Raises:
        GuidedCDError: A layer is missing or of another shape; names the first one.
    """
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    sizes = {f"{name}.weight": (len(up), *down.shape[1:]) for name, (down, up) in adapter.pairs.items()}
    sizes |= {name: tuple(delta.shape) for name, delta in adapter.deltas.items()}
    for name, size in sizes.items():
        if name not in shapes:
            raise GuidedCDError(f"{what} changes {name}, which this transformer lacks: it belongs to another base.")
        if torch.Size(size) != shapes[name]:
            raise GuidedCDError(
                f"{what} changes {name} of shape {list(size)}, this transformer has {list(shapes[name])}: "
                "it belongs to another base."
            )


@torch.no_grad()
def merge(adapter: Adapter, network: nn.Module, strength: float = 1.0) -> None:
    """Add an adapter to the weights of a network, in place; sums are computed in float32.

    Raises:
        GuidedCDError: It belongs to another base.
    """
    check_base(adapter, network, "the LoRA")
    parameters = dict(network.named_parameters())
    for name, change in adapter.changes().items():
        parameter = parameters[name]
        parameter.copy_(parameter.float() + strength * change.to(parameter.device))


class LoraTeacher:
    """A teacher whose students may start from a LoRA file, and be written as one."""

    network: nn.Module
    scheduler: Any
    schedule: Any
    lora_pipeline: str
    """diffusers' pipeline whose loader reads the files."""

    def __init__(self, *, scheduler: Any, **parts: Any) -> None:
        """Combine the networks.

        Args:
            scheduler: The scheduler of its pipeline.
            parts: Arguments of the next base class.
        """
        super().__init__(**parts)
        self.scheduler = scheduler

    @property
    def noise_shift(self) -> float:
        """The shift of a flow model's noise levels, as in `Sampling`."""
        config = self.scheduler.config
        return float(config.get("shift") or config.get("flow_shift") or 1.0)

    def add_lora(self, path: str, network: nn.Module | None = None) -> None:
        """Add a LoRA file to the weights of `network`, a copy of the denoiser; without one, only check that it fits.

        Raises:
            GuidedCDError: The file is missing, damaged, of an unknown layout or of another base.
        """
        adapter = read(path, self.network)
        if network is not None:
            merge(adapter, network)

    def save_lora(
        self, folder: Path, pairs: Mapping[str, tuple[Tensor, Tensor]], biases: Mapping[str, Tensor], steps: int
    ) -> tuple[str, ...]:
        """Write an adapter for diffusers and, where there is such a layout, for ComfyUI.

        Args:
            folder: Where the files are written.
            pairs: (up, down) by layer.
            biases: Changes of biases by parameter.
            steps: Steps in which the student was evaluated.

        Returns:
            The names of the files; the first one is for `lora_pipeline`.
        """
        expert = getattr(self, "expert", None) if getattr(self, "other", None) is not None else None
        is_flow = self.schedule.prediction == "flow"
        sampling = Sampling(
            scheduler="FlowMatchLCMScheduler" if is_flow else "LCMScheduler",
            shift=self.noise_shift if is_flow else 1.0,
            steps=steps,
            expert=expert,
        )
        adapter = Adapter({name: (down, up) for name, (up, down) in pairs.items()}, biases, sampling)
        family, prefix = family_of(self.network), f"{expert}_noise_" if expert else ""
        states = {f"{prefix}pytorch_lora_weights.safetensors": diffusers_state(adapter, self.network)}
        if family.has_native_form:
            states[f"{prefix}comfyui.safetensors"] = native_state(adapter, family)
        for name, state in states.items():
            write(folder / name, *state)
        return tuple(states)


def diffusers_state(adapter: Adapter, network: nn.Module | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata in diffusers' layout, for `load_lora_weights`.

    Args:
        adapter: The adapter.
        network: The transformer, whose sizes a change of a bias needs: PEFT gives all layers a bias or none, and a bias
            belongs to a pair, which is zero where there is no other.

    Raises:
        GuidedCDError: The adapter has full changes of weights, which this layout cannot contain.
    """
    biases = {}
    if network is not None:
        biases = {
            name.removesuffix(".bias"): value
            for name, value in adapter.deltas.items()
            if name.endswith(".bias") and isinstance(network.get_submodule(name.removesuffix(".bias")), nn.Linear)
        }
        adapter = attrs.evolve(
            adapter,
            pairs={**_zero_pairs(adapter, network, biases), **adapter.pairs},
            deltas={name: value for name, value in adapter.deltas.items() if name.removesuffix(".bias") not in biases},
        )
    _without_deltas(adapter, "diffusers' layout")
    from peft import LoraConfig

    rank = Counter(adapter.ranks.values()).most_common(1)[0][0]
    others = {name: one for name, one in adapter.ranks.items() if one != rank}
    # Complete, because diffusers 0.38 reads every entry; alpha is the rank, because other readers assume it.
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_bias=bool(biases),
        target_modules=sorted(adapter.pairs),
        rank_pattern=others,
        alpha_pattern=others,
    ).to_dict()
    values = {f"transformer.{key}": sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    metadata = {"format": "pt", PEFT_METADATA: json.dumps(values, indent=2, sort_keys=True, default=str)}
    tensors = {}
    for name, (down, up) in adapter.pairs.items():
        tensors[f"transformer.{name}.lora_A.weight"], tensors[f"transformer.{name}.lora_B.weight"] = down, up
        if biases:
            tensors[f"transformer.{name}.lora_B.bias"] = biases.get(name, up.new_zeros(len(up)))
    return tensors, metadata | _sampling_metadata(adapter)


def _zero_pairs(adapter: Adapter, network: nn.Module, biases: Iterable[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Pairs without effect for the layers that have a bias and no pair."""
    rank = Counter(adapter.ranks.values() or [1]).most_common(1)[0][0]
    pairs = {}
    for name in biases:
        out, into = network.get_parameter(f"{name}.weight").shape
        pairs[name] = (torch.zeros(rank, into), torch.zeros(out, rank))
    return pairs


def native_state(adapter: Adapter, family: Family) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata in the layout of ComfyUI and LightX2V, without alpha; full changes as `diff` and `diff_b`.

    Raises:
        GuidedCDError: There is no such layout for the family.
    """
    if not family.has_native_form:
        raise GuidedCDError(
            f"there is no common native layout for LoRA files of {family.title}; write that of diffusers."
        )
    tensors = {}
    for name, (down, up) in adapter.pairs.items():
        base = f"diffusion_model.{family.to_native(name)}"
        tensors[f"{base}.{family.down}.weight"], tensors[f"{base}.{family.up}.weight"] = down, up
    for name, delta in adapter.deltas.items():
        module, _, leaf = name.rpartition(".")
        if name.endswith("scale_shift_table"):
            tensors[f"diffusion_model.{family.to_native(name)}.diff"] = delta
        else:
            tensors[f"diffusion_model.{family.to_native(module)}.{'diff' if leaf == 'weight' else 'diff_b'}"] = delta
    return tensors, {"format": "pt"} | _sampling_metadata(adapter)


def kohya_state(adapter: Adapter, family: Family) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata in the layout of musubi-tuner and kohya's scripts, with alpha, which is the rank.

    Raises:
        GuidedCDError: The adapter has full changes of weights.
    """
    _without_deltas(adapter, "kohya's layout")
    tensors = {}
    for name, (down, up) in adapter.pairs.items():
        base = f"lora_unet_{family.to_kohya(name)}"
        tensors[f"{base}.lora_down.weight"], tensors[f"{base}.lora_up.weight"] = down, up
        tensors[f"{base}.alpha"] = torch.tensor(float(len(down)))
    rank = str(max(adapter.ranks.values()))
    return tensors, {"format": "pt", "ss_network_dim": rank, "ss_network_alpha": rank} | _sampling_metadata(adapter)


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a state and its metadata as one safetensors file, which appears when it is complete."""
    with replacing(path) as partial:
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, partial, dict(metadata))


def _sampling_metadata(adapter: Adapter) -> dict[str, str]:
    return {SAMPLING_METADATA: json.dumps(attrs.asdict(adapter.sampling))} if adapter.sampling else {}


def _without_deltas(adapter: Adapter, layout: str) -> None:
    if adapter.deltas:
        raise GuidedCDError(
            f"{layout} has no place for the change of {next(iter(adapter.deltas))}; write native files."
        )
    if not adapter.pairs:
        raise GuidedCDError("the adapter changes no layer.")
