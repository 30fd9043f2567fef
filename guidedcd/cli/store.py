"""`guidedcd store`: what a latent store holds, and whether it is whole."""

from __future__ import annotations

import sys
from typing import Annotated, Any

from cyclopts import App, Parameter

from guidedcd.cli.flag_types import COUNT, PathArgument
from guidedcd.errors import GuidedCDError
from guidedcd.plugins.registry import Registry


def add(app: App, registry: Registry, flags_class: Any) -> None:
    """Add the commands to `app`."""
    store = App(name="store", help="Show, check and prune latent stores.")
    app.command(store)

    @store.command
    def show(folder: PathArgument, /) -> None:
        """Show what a latent store was computed from and what it contains.

        Parameters
        ----------
        folder
            The store, such as runs/stores/FINGERPRINT.
        """
        from guidedcd.preprocessing.show import show_store

        show_store(folder)

    @store.command
    def verify(folder: PathArgument, /, *, samples: Annotated[int, COUNT] = 2, device: str | None = None) -> None:
        """Check every shard's checksum, and compute some videos again; exits with 2 and names a damaged shard.

        Parameters
        ----------
        folder
            The store's folder; the store may be unfinished.
        samples
            Videos that are computed again, each with all its draws; 0 checks the files only.
        device
            auto, cpu, cuda, cuda:N or mps; by default as in the run that began the store.
        """
        from guidedcd.console import console
        from guidedcd.preprocessing.verify import verify_store

        result = verify_store(folder, samples=samples, device=device)
        errors = [error for one in result["samples"].values() for error in one.values()]
        again = (
            f", {len(result['samples'])} videos computed again, largest difference {max(errors):.2g}" if errors else ""
        )
        absent = f", {result['missing']} not there yet" if result["missing"] else ""
        console.print(
            f"whole    {folder}: {result['shards'] - result['missing']} shards{absent}{again}", highlight=False
        )

    @store.command
    def prune(
        *folders: PathArgument,
        unused: Annotated[bool, Parameter(negative="")] = False,
        yes: Annotated[bool, Parameter(name=["--yes", "-y"], negative="")] = False,
    ) -> None:
        """List the parts of latent stores that no run needs, and remove them after a question.

        These are scores of former versions of an energy and of energies that are not installed, inversions of stores
        whose runs are all finished, and unfinished stores that were not written for a day. Data of an unfinished or a
        running run are never removed.

        Parameters
        ----------
        folders
            The stores; by default all in runs/stores.
        unused
            Also remove scores that no run has.
        yes
            Remove without a question.
        """
        from guidedcd.training.prune import prune

        prune(folders, unused=unused, confirm=lambda: yes or _answer())


def _answer() -> bool:
    """Whether the user agrees to the removal.

    Raises:
        GuidedCDError: There is no terminal for the question.
    """
    if not sys.stdin.isatty():
        raise GuidedCDError("nothing was removed, since no terminal can be asked: give --yes to remove these folders.")
    return input("Remove them? [y/N] ").strip().lower() in ("y", "yes")
