"""`guidedcd data`: the datasets of a run."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import App, Parameter

from guidedcd.cli.flag_types import COUNT, PathFlag
from guidedcd.cli.run_flags import read_run
from guidedcd.plugins.registry import Registry


def add(app: App, registry: Registry, flags_class: Any) -> None:
    """Add the commands to `app`."""
    data = App(name="data", help="Inspect the datasets of a run.")
    app.command(data)

    def inspect(*, flags: Any = None, sample: int = 32, out: PathFlag = None) -> None:
        """Read a sample of every dataset, as `train` with the same flags does, and show the clips and their captions.

        Prints which clips can be read, the reason for every clip that cannot, the length of captions in each reward's
        own tokens, and how many clips the routes send to each reward. With --out, writes a contact sheet of the clips
        in the size of the teacher's videos.

        Parameters
        ----------
        sample
            Clips to read of each dataset, spread over those that the run would use; 0 reads all of them.
        out
            PNG file of a contact sheet; without it nothing is written.
        """
        run = read_run(flags, registry)
        from guidedcd.data.inspection import inspect_data

        inspect_data(run, sample=sample, sheet=out)

    inspect.__annotations__["flags"] = Annotated[flags_class, Parameter(name="*")]
    inspect.__annotations__ |= {"sample": Annotated[int, COUNT], "out": PathFlag}
    data.command(inspect)
