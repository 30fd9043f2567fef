"""`guidedcd try`: one component on a few videos or captions, without a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from json import dumps
from typing import Annotated, Any

from cyclopts import App, Parameter

from guidedcd.cli.command_line import starting
from guidedcd.cli.flag_types import POSITIVE_WHOLE, PathArgument, PathFlag
from guidedcd.cli.run_flags import flags_of, read_flags, read_selection, run_flags
from guidedcd.config.kinds import DEFAULT_PROFILE
from guidedcd.config.sources import Layer, split_names
from guidedcd.config.trials import EnergyTrialConfig, TrialConfig
from guidedcd.console import console
from guidedcd.plugins.registry import Registry

JSON = Annotated[bool, Parameter(negative="")]
Texts = Annotated[list[str] | None, Parameter(negative="")]


def add(app: App, registry: Registry, flags_class: Any) -> None:
    """Add the commands to `app`."""
    group = App(name="try", help="Try an energy, a reward or a route without training.")
    app.command(group)

    def components(*kinds: str, inner: tuple[str, ...] = ()) -> Any:
        """The flags of some kinds of components, where this command runs."""
        if flags_class is Any:
            return Any
        class_ = run_flags(registry, DEFAULT_PROFILE, kinds=kinds, scalars=("profile",), sections=(), inner=inner)
        return Annotated[class_, Parameter(name="*")]

    _add_energy(group, registry, components("teacher", "energies", "metrics", inner=("rewards",)))
    _add_reward(group, registry, components("teacher", "rewards"))
    _add_route(group, registry, components("rewards", "routes", "data"))


def _add_energy(group: App, registry: Registry, components: Any) -> None:
    def energy(
        name: str,
        /,
        *,
        prompt: Texts = None,
        out: PathFlag = None,
        json: bool = False,
        flags: Any = None,
        config: Any = None,
    ) -> None:
        """Sample a teacher with and without an energy from the same noise, side by side.

        Prints the energy and its share of the prediction at every step, and the metrics of both. Writes
        side_by_side.mp4, contact_sheet.png and energy.json.

        Parameters
        ----------
        name
            Name of the energy, such as `pta`.
        prompt
            What to show; @FILE reads a file of prompts. May be repeated. By default prompts of the teacher's own.
        out
            Folder of the files; the default is trials/NAME.
        json
            Print one JSON object instead of tables.
        """
        options = read_flags(EnergyTrialConfig, config, "a trial")
        selection = read_selection(flags, registry, _tried("energies", name))
        with _tables(not json):
            starting("energy   loading PyTorch and the teacher")
            from guidedcd.trials.energy import try_energy

            trial = try_energy(selection, prompts=prompt, out=out, config=EnergyTrialConfig(**options))
        if json:
            _print_json(trial.to_dict())

    energy.__annotations__ |= {
        "prompt": Texts,
        "out": PathFlag,
        "json": JSON,
        "flags": components,
        "config": flags_of(EnergyTrialConfig, "Trial"),
    }
    group.command(energy)


def _add_reward(group: App, registry: Registry, components: Any) -> None:
    def reward(
        name: str,
        /,
        *videos: PathArgument,
        prompt: Texts = None,
        out: PathFlag = None,
        json: bool = False,
        flags: Any = None,
        config: Any = None,
    ) -> None:
        """Score videos with a reward, and draw the size of its gradient over their pixels.

        Prints the scores. Writes contact_sheet.png, with each video's frames above their gradients, and reward.json.

        Parameters
        ----------
        name
            Name of the reward, such as `clip`.
        videos
            Video files; by default the teacher samples some.
        prompt
            Caption of the videos, one for all or one for each; by default the prompt in their metadata.
        out
            Folder of the files; the default is trials/NAME.
        json
            Print one JSON object instead of tables.
        """
        options = read_flags(TrialConfig, config, "a trial")
        selection = read_selection(flags, registry, _tried("rewards", name))
        with _tables(not json):
            starting("reward   loading PyTorch and the reward")
            from guidedcd.trials.reward import described, try_reward

            scored = try_reward(selection, videos, prompts=prompt, out=out, config=TrialConfig(**options))
        if json:
            _print_json(described(selection, scored))

    reward.__annotations__ |= {
        "videos": PathArgument,
        "prompt": Texts,
        "out": PathFlag,
        "json": JSON,
        "flags": components,
        "config": flags_of(TrialConfig, "Trial"),
    }
    group.command(reward)


def _add_route(group: App, registry: Registry, components: Any) -> None:
    def route(
        name: str,
        /,
        *captions: str,
        clips: Annotated[int, POSITIVE_WHOLE] = 12,
        json: bool = False,
        flags: Any = None,
    ) -> None:
        """Print what a route decides for captions: which rewards score a clip, with which caption, and energies.

        Parameters
        ----------
        name
            Name of the route, such as `short-caption`.
        captions
            Captions, or @FILE with one a line or a JSON list; by default those of the profile's data set.
        clips
            How many clips of the data set are shown where no caption is given.
        json
            Print one JSON object instead of tables.
        """
        selection = read_selection(flags, registry, _tried("routes", name))
        with _tables(not json):
            starting("route    loading PyTorch and the route")
            from guidedcd.trials.route import described, try_route

            decisions = try_route(selection, captions, clips=clips)
        if json:
            _print_json(described(selection, decisions))

    route.__annotations__ |= {"clips": Annotated[int, POSITIVE_WHOLE], "json": JSON, "flags": components}
    group.command(route)


@contextmanager
def _tables(printed: bool) -> Iterator[None]:
    """Within this context nothing is printed on standard output, unless `printed`."""
    before, console.quiet = console.quiet, console.quiet or not printed
    try:
        yield
    finally:
        console.quiet = before


def _print_json(value: Any) -> None:
    print(dumps(value, indent=2, ensure_ascii=False))


def _tried(key: str, name: str) -> Layer:
    """The choice of one component."""
    return Layer(select={key: split_names([name], "NAME")})
