"""The identity of a latent store: all options that its contents depend on."""

from __future__ import annotations

from typing import Any

import attrs

from guidedcd.config.run import Run
from guidedcd.config.sections import Preprocess
from guidedcd.config.structure import unstructure
from guidedcd.models.teachers.protocol import Teacher
from guidedcd.plugins.configs import EnergyConfig
from guidedcd.preprocessing import store


def identify(run: Run, teacher: Teacher) -> dict[str, Any]:
    """The identity of the run's store, as JSON values.

    Scales, fractions, omega, rewards and routes are not part of it: they act in training.
    """
    settings: Preprocess = run.preprocess
    engine = {a.name for a in attrs.fields(EnergyConfig)} - {"reference"}
    return {
        "format": store.FORMAT,
        "teacher": {"name": run.teacher.name, "fingerprint": teacher.fingerprint()},
        "geometry": attrs.asdict(teacher.geometry),
        "data": [{"name": chosen.name} | unstructure(chosen.config) for chosen in run.data],
        "energies": {
            name: {k: v for k, v in unstructure(config).items() if k not in engine}
            for name, config in run.energies.items()
        },
        "steps": run.solver.steps,
        "window": settings.fraction if run.energies else None,  # the option's name when the format was made
        "videos": settings.videos,
        "draws_per_video": settings.draws_per_video,
        "noise_range": list(settings.noise_range),
        "shards": -(-settings.videos // settings.shard_size),
        "shard_size": settings.shard_size,
        "batch_size": settings.batch_size,
        "dtype": settings.dtype,
        "precision": settings.precision,
        "seed": run.seed,
    }
