"""`guidedcd preprocess`: compute the latent store of a run, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from guidedcd.cli.flags import read_run
from guidedcd.cli.train import usable
from guidedcd.plugins import Registry


def add(app: App, registry: Registry, flags_class: Any) -> None:
    """Add the command to `app`."""

    def preprocess(*, flags: Any = None, store: Path | None = None) -> None:
        """Compute the teacher's predictions and the energies' gradients that `train` with the same flags would need.

        Finished shards are kept: the same command continues where it stopped.

        Parameters
        ----------
        store
            Where; by default runs/stores/FINGERPRINT, where `train` looks for it.
        """
        run = read_run(flags, registry)
        usable(run.device)
        from guidedcd.preprocess import run_preprocess

        run_preprocess(run, store_folder=store)

    preprocess.__annotations__["flags"] = Annotated[flags_class, Parameter(name="*")]
    preprocess.__annotations__["store"] = Path | None
    app.command(preprocess)
