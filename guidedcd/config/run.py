"""The run: one frozen object with every option of a distillation. No torch.

A flag, a key of a TOML or run.json file and the Python attribute spell the same path:
`--train.optimizer.lr`, `train.optimizer.lr`, `run.train.optimizer.lr`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from guidedcd import __version__
from guidedcd.config.from_python import layers_of
from guidedcd.config.kinds import DEFAULT_PROFILE, KINDS, SECTIONS, Basic, Chosen
from guidedcd.config.merge import fields_of
from guidedcd.config.sections import EvaluateConfig, Preprocess, Solver, Student, Train
from guidedcd.config.structure import unstructure
from guidedcd.docstrings import documented
from guidedcd.errors import GuidedCDError
from guidedcd.plugins import one_file
from guidedcd.plugins.configs import OutputEnergyConfig
from guidedcd.plugins.registry import Component, Registry, load_plugins


@documented
@attrs.frozen(kw_only=True)
class Run(Basic):
    """Everything about a distillation; two equal runs compute the same."""

    teacher: Chosen
    """The frozen pretrained model."""
    data: tuple[Chosen, ...]
    """The datasets that are mixed."""
    energies: dict[str, Any] = attrs.field(factory=dict)
    """Config of each energy by name."""
    rewards: dict[str, Any] = attrs.field(factory=dict)
    """Config of each reward by name."""
    routes: dict[str, Any] = attrs.field(factory=dict)
    """Config of each routing rule by name, in the order in which they apply."""
    metrics: dict[str, Any] = attrs.field(factory=dict)
    """Config of each metric by name."""
    solver: Solver = attrs.field(factory=Solver)
    """The teacher's ODE grid, and how a step on it is guided."""
    preprocess: Preprocess = attrs.field(factory=Preprocess)
    """The latent store."""
    student: Student = attrs.field(factory=Student)
    """The network that is trained: all its weights, or adapters."""
    train: Train = attrs.field(factory=Train)
    """The training: steps, batches, optimizer, checkpoints."""
    evaluate: EvaluateConfig = attrs.field(factory=EvaluateConfig)
    """The evaluation after training: prompts, seeds, steps, guidance strengths."""

    def __attrs_post_init__(self) -> None:
        for name, config in self.energies.items():
            if config.fraction > self.preprocess.fraction and not isinstance(config, OutputEnergyConfig):
                raise GuidedCDError(
                    f"energies.{name}.fraction is {config.fraction}, but gradients are computed only for the noisiest "
                    f"{self.preprocess.fraction} of the grid. Set --preprocess.fraction {config.fraction} or lower it."
                )
            noisiest = self.preprocess.noise_range[1]
            if config.fraction > 0 and noisiest <= 1 - config.fraction:
                raise GuidedCDError(
                    f"energies.{name}.fraction is {config.fraction}, the noisiest part of the grid, but draws come "
                    f"from below {noisiest} of it, so the energy would never act. Raise "
                    f"--energies.{name}.fraction or --preprocess.noise-range."
                )

        trains = any(reward.weight for reward in self.rewards.values()) or self.train.guided_steps
        if not self.train.consistency_weight and not trains:
            raise GuidedCDError(
                "--train.consistency-weight is 0 and the run has no rewards with a weight, so that nothing trains the "
                "student. Give --rewards, or a weight above 0."
            )
        if self.student.ema is not None and self.train.average is not None:
            raise GuidedCDError("--student.ema and --train.average both average the weights. Add --train.average none.")

    def chosen(self, kind: str) -> tuple[Chosen, ...]:
        """The components of one kind ("energy", "reward", "route", "teacher", "dataset", "metric") with options."""
        match kind:
            case "teacher":
                return (self.teacher,)
            case "dataset":
                return self.data
        by_name = {"energy": self.energies, "reward": self.rewards, "route": self.routes, "metric": self.metrics}
        return tuple(Chosen(name, config) for name, config in by_name[kind].items())

    def component(self, kind: str, name: str, registry: Registry | None = None) -> Component:
        """What a plugin offers as `name`, or the Python object that the run calls so."""
        registry = registry or load_plugins()
        chosen = next((one for one in self.chosen(kind) if one.name == name), None)
        return registry.get(kind, name) if chosen is None else chosen.component(registry)

    def build(self, kind: str, registry: Registry | None = None) -> dict[str, Any]:
        """The built components of one kind by name (datasets may repeat a name: use `chosen`)."""
        registry = registry or load_plugins()
        return {chosen.name: chosen.build(registry) for chosen in self.chosen(kind)}

    def described(self, kind: str) -> dict[str, Any]:
        """The built components of one kind by their description in errors, such as "reward 'hps' of guidedcd/hps"."""
        registry = load_plugins()
        return {str(chosen.component(registry)): chosen.build(registry) for chosen in self.chosen(kind)}

    def to_dict(self) -> dict[str, Any]:
        """The run as JSON values, in the layout of a `--config` file, with every option."""
        return {
            "guidedcd": __version__,
            "profile": self.profile,
            "name": self.name,
            "seed": self.seed,
            "device": self.device,
            "teacher": {self.teacher.name: unstructure(self.teacher.config)},
            "data": [{chosen.name: unstructure(chosen.config)} for chosen in self.data],
            **{
                key: {chosen.name: unstructure(chosen.config) for chosen in self.chosen(KINDS[key])}
                for key in ("energies", "rewards", "routes", "metrics")
            },
            **{section: unstructure(getattr(self, section)) for section in SECTIONS},
            **({"plugin_files": hashes} if (hashes := one_file.hashes()) else {}),
        }

    @classmethod
    def from_profile(
        cls,
        profile: str = DEFAULT_PROFILE,
        /,
        *,
        teacher: str | Mapping[str, Any] | None = None,
        data: str | Sequence[Any] | Mapping[str, Any] | None = None,
        energies: str | Sequence[Any] | Mapping[str, Any] | None = None,
        rewards: str | Sequence[Any] | Mapping[str, Any] | None = None,
        routes: str | Sequence[Any] | Mapping[str, Any] | None = None,
        metrics: str | Sequence[Any] | Mapping[str, Any] | None = None,
        seed: int | None = None,
        device: str | None = None,
        name: str | None = None,
        **sections: Mapping[str, Any],
    ) -> Run:
        """The run of a shipped profile, with these changes; what is left out stays as in the profile.

        Args:
            profile: A shipped profile, such as "shapes".
            teacher: "shapes", "videocrafter2:model.ckpt", or {name: options}.
            data: "videos:FOLDER", a list of such texts, or {name: options}.
            energies: "pta", ["pta"], [] for none, {"pta": {"relative": 1.6}}; or an object in place of an installed
                component, {"mine": my_energy}, with options {"mine": (my_energy, {"relative": 0.1})} or with an
                attribute `config`, an `EnergyConfig`. A class is called with its config.
            rewards: In the same forms.
            routes: In the same forms.
            metrics: In the same forms.
            seed: Seed of all random numbers.
            device: "auto", "cpu", "cuda", "cuda:N" or "mps".
            name: Part of the run folder's name.
            **sections: Options of `solver`, `preprocess`, `student`, `train` and `evaluate`:
                train={"steps": 100, "optimizer": {"lr": 1e-4}}.

        Raises:
            GuidedCDError: A name, option or value that does not exist or is out of range.
        """
        chosen = {"teacher": teacher, "data": data, "energies": energies, "rewards": rewards, "routes": routes}
        scalars = {"metrics": metrics, "seed": seed, "device": device, "name": name}
        registry = load_plugins()
        layers = layers_of(profile, {**chosen, **scalars, **sections}, registry)
        return cls(**fields_of(layers, registry))
