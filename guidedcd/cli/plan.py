"""`guidedcd plan`: what a run would take, before it is run."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import App, Parameter

from guidedcd.cli.command_line import starting
from guidedcd.cli.flag_types import POSITIVE, POSITIVE_WHOLE, PathFlag
from guidedcd.cli.run_flags import read_run
from guidedcd.cli.train import usable
from guidedcd.plugins.registry import Registry


def add(app: App, registry: Registry, flags_class: Any) -> None:
    """Add the command to `app`."""

    def plan(
        *,
        flags: Any = None,
        on: str | None = None,
        device_tflops: float | None = None,
        device_memory: float | None = None,
        processes: int | None = None,
        probe: bool = False,
        cheaper: bool = True,
        json: bool = False,
        store: PathFlag = None,
    ) -> None:
        """Predict the time, memory and disk that `train` with the same flags takes. Nothing is written.

        Operations, bytes moved and bytes alive are counted by running the same code on tensors without memory; no
        weights are needed for teachers and rewards whose architecture is published. The plan also
        lists what other settings would save. It leaves out the loading of models and videos, and metrics.

        Parameters
        ----------
        on
            Plan for this GPU instead of the present device: h200, h100, a100, 4090, ...; 8xh100 for eight of them.
        device_tflops
            Peak 16-bit TFLOP/s of the device, in place of the built-in figure.
        device_memory
            Memory of the device in GiB, in place of the built-in figure.
        processes
            How many devices share the work; by default as many as this command was launched on.
        probe
            Also measure a small part of the run on the present device, in at most 60 seconds.
        cheaper
            List what other settings would save; --no-cheaper is faster.
        json
            Print one JSON object instead of tables.
        store
            The folder of the store, to check that its disk has room.
        """
        run = read_run(flags, registry, needs_data=probe)
        if on is None:
            usable(run.device)
        if not json:
            starting("plan     counting the operations of the run, up to a minute")
        from guidedcd.planning.plan import Question, print_plan

        print_plan(
            run,
            Question(
                on=on,
                tflops=device_tflops,
                memory=device_memory,
                processes=processes,
                probe=probe,
                cheaper=cheaper,
                as_json=json,
                store=store,
            ),
        )

    plain = Parameter(negative="")
    plan.__annotations__["flags"] = Annotated[flags_class, Parameter(name="*")]
    plan.__annotations__ |= {
        "on": str | None,
        "device_tflops": Annotated[float | None, POSITIVE],
        "device_memory": Annotated[float | None, POSITIVE],
        "processes": Annotated[int | None, POSITIVE_WHOLE],
        "probe": Annotated[bool, plain],
        "cheaper": bool,
        "json": Annotated[bool, plain],
        "store": PathFlag,
    }
    app.command(plan)
