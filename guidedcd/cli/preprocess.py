"""`guidedcd preprocess`: compute the latent store of a run, and nothing else."""

from __future__ import annotations

import re
from typing import Annotated, Any

from cyclopts import App, Parameter

from guidedcd.cli.command_line import starting
from guidedcd.cli.flag_types import PathFlag
from guidedcd.cli.run_flags import read_run
from guidedcd.cli.train import usable
from guidedcd.errors import GuidedCDError, shortened
from guidedcd.plugins.registry import Registry


def add(app: App, registry: Registry, flags_class: Any) -> None:
    """Add the command to `app`."""

    def preprocess(*, flags: Any = None, store: PathFlag = None, shard: str | None = None) -> None:
        """Compute the latent store that `train` with the same flags needs: predictions and energy gradients.

        Finished shards are kept, and the same command continues after them.

        Parameters
        ----------
        store
            The store's folder; by default runs/stores/FINGERPRINT, the folder that `train` reads.
        shard
            I/N computes only part I of N, counted from 0, for several machines with one store or one each.
        """
        chosen = parse_shard(shard)
        run = read_run(flags, registry)
        usable(run.device)
        starting("store    loading PyTorch and the teacher")
        from guidedcd.preprocessing.bucket_stores import preprocess_all

        preprocess_all(run, store_folder=store, shard=chosen)

    preprocess.__annotations__["flags"] = Annotated[flags_class, Parameter(name="*")]
    preprocess.__annotations__ |= {"store": PathFlag, "shard": str | None}
    app.command(preprocess)


def parse_shard(text: str | None) -> tuple[int, int]:
    """(I, N) of "I/N"; none is the whole, (0, 1).

    Raises:
        GuidedCDError: `text` has another form, or I is not below N.
    """
    if text is None:
        return 0, 1
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if not match or not int(match[1]) < int(match[2]):
        raise GuidedCDError(f"--shard must be I/N with 0 <= I < N, such as 0/4, not '{shortened(text, 40)}'.")
    return int(match[1]), int(match[2])
