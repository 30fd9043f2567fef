"""Parity of the attention energy on recorded maps: masks, energies and gradients, as released and as printed."""

from __future__ import annotations

import functools
import re
from typing import Any

import torch
from torch import Tensor

from guidedcd.parity.inputs import Tensors

SCALE = 100.0
"""The released code multiplies the mean energy by 100 twice, which turns the paper's lambda 500 into 0.05."""


def sorted_last(maps: Tensor) -> Tensor:
    """A mask (..., F, F) with one entry per row: the last of an ascending sort, as in the released code.

    Which of several equal entries it marks depends on torch's sort.
    """
    index = maps.sort(dim=-1).indices[..., -1:]
    return torch.zeros_like(maps, dtype=torch.bool).scatter(-1, index, True)


def energies(
    maps: dict[str, Tensor], reference: dict[str, Tensor], masks: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The mean and the sum over the masked entries of (reference - maps)^2, each by layer, scalars.

    Args:
        maps: Attention maps ((B h w) heads, F, F) by layer.
        reference: The same layers of the reference.
        masks: Which entries count, bool, same shapes.
    """
    from guidedcd_pta.energy import layer_energy

    means = {name: layer_energy(maps[name][None], reference[name][None], masks[name][None])[0] for name in reference}
    return means, {name: mean * masks[name].sum() for name, mean in means.items()}


def released_total(means: dict[str, Tensor]) -> Tensor:
    """The released energy, a scalar: 1e4 times the mean over layers of each layer's mean."""
    return SCALE * SCALE * torch.stack(list(means.values())).mean()


def printed_total(sums: dict[str, Tensor]) -> Tensor:
    """The printed energy, a scalar: the sum over layers of each layer's sum, added in their order."""
    return functools.reduce(torch.add, sums.values())


def layers(file: Tensors) -> list[str]:
    """The layers' names, prefixes of the file's keys; numbers in them are sorted by value."""
    names = {key.rpartition(".")[0] for key in file.keys if key.endswith(".ref")}
    return sorted(names, key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)])


def pta(file: Tensors) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and numbers of one file with maps "layer.ref" and "layer.gen", ((B h w) heads, F, F) each."""
    from guidedcd_pta.energy import primary

    names = layers(file)
    ref = {name: file[f"{name}.ref"] for name in names}
    gen = {name: file[f"{name}.gen"].requires_grad_(True) for name in names}
    official = {name: sorted_last(maps) for name, maps in ref.items()}
    paper = {name: primary(maps, ties="all") for name, maps in ref.items()}
    first = {name: primary(maps, ties="first") for name, maps in ref.items()}
    means, _ = energies(gen, ref, official)
    _, sums = energies(gen, ref, paper)
    _, firsts = energies(gen, ref, first)
    official_grads = torch.autograd.grad(released_total(means), [gen[name] for name in names])
    paper_grads = torch.autograd.grad(printed_total(sums), [gen[name] for name in names])
    tensors: dict[str, Tensor] = {}
    for name, by_official, by_paper in zip(names, official_grads, paper_grads, strict=True):
        values = {
            "ref": ref[name],
            "gen": gen[name].detach(),
            "mask_official_sort": official[name],
            "mask_paper_all_ties": paper[name],
            "mask_argmax_first": first[name],
            "topk1_index": ref[name].topk(1, dim=-1).indices.to(torch.uint8),
            "grad_official_energy": by_official,
            "grad_paper_energy": by_paper,
        }
        tensors |= {f"{name}.{key}": value for key, value in values.items()}
    means, sums, firsts = ({k: v.detach() for k, v in each.items()} for each in (means, sums, firsts))
    mean_of = {name: float(value) for name, value in means.items()}
    numbers = {
        "layers": names,
        "case": file.path.stem,
        "official_mse_per_layer": mean_of,
        "official_compute_temp_loss": float(released_total(means)) / SCALE,
        "official_energy_x_temp_loss_scale100": float(released_total(means)),
        "motionclone_v2_sum_of_layer_mse": sum(mean_of.values()),
        "motionclone_v2_energy_weight2000": 2000 * sum(mean_of.values()),
        "paper_energy_per_layer": {name: float(value) for name, value in sums.items()},
        "paper_energy_sum_layers": float(printed_total(sums)),
        "argmax_first_energy_per_layer": {name: float(value) for name, value in firsts.items()},
        "masked_count_official": {name: int(mask.sum()) for name, mask in official.items()},
        "masked_count_paper": {name: int(mask.sum()) for name, mask in paper.items()},
    }
    return tensors, numbers
