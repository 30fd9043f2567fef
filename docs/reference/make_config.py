"""Write docs/reference/config.md: every option of a run, from the classes that declare it.

python docs/reference/make_config.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from guidedcd.config.kinds import KINDS, SECTIONS
from guidedcd.config.option_types import flag, limits, types_of
from guidedcd.config.sources import profiles
from guidedcd.docstrings import docs_of
from guidedcd.plugins.registry import CONFIGS

PAGE = Path(__file__).parent / "config.md"
HEAD = """\
# Options of a run

<!-- Written by `python docs/reference/make_config.py` from the option classes. -->

`train`, `preprocess`, `plan` and `data inspect` accept the options on this page. A flag, a key of a
TOML file, a key in Python and an attribute of the run have the same path:

| where | how the learning rate is set |
|---|---|
| command line | `--train.optimizer.lr 3e-4` |
| TOML file | `lr = 3e-4` under `[train.optimizer]` |
| Python | `Run.from_profile("shapes", train={"optimizer": {"lr": 3e-4}})` |
| attribute | `run.train.optimizer.lr` |

Words are joined by `-` in flags and by `_` elsewhere.

Sources are merged in this order; a later one takes precedence:

1. the defaults of the classes, as on this page
2. the profile (`--profile`, `shapes` if not given)
3. the file (`--config`): TOML, or the `run.json` of another run
4. flags

`guidedcd train --help` shows the defaults of the chosen profile and the options of the chosen
components, `guidedcd train --help-all` those of all installed ones. `guidedcd plugins show pta`
shows the options of one component.
"""


def options(cls: type, path: str) -> Iterator[tuple[str, Any, str, str]]:
    """(flag, default, accepted values, meaning) of every field of an options class, groups included."""
    for field in (one for one in attrs.fields(cls) if not one.metadata.get("recorded")):
        name, kind = f"{path}.{flag(field.name)}", types_of(cls)[field.name]
        if isinstance(kind, type) and attrs.has(kind):
            yield from options(kind, name)
            continue
        default = field.default.factory() if isinstance(field.default, attrs.Factory) else field.default
        yield f"--{name}", default, limits(field), docs_of(cls).get(field.name, "")


def spelled(value: Any) -> str:
    """A default as one types it, as a code span; nothing for a value that stands for none."""
    if isinstance(value, tuple | list):
        value = ",".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)
    text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text}`" if text else ""


def table(cls: type, path: str) -> list[str]:
    """The options of a class as a Markdown table."""
    lines = ["| option | default | accepts | meaning |", "|---|---|---|---|"]
    for name, default, accepted, meaning in options(cls, path):
        lines.append(f"| `{name}` | {spelled(default)} | {accepted} | {meaning.replace('|', chr(92) + '|')} |")
    return [*lines, ""]


def page() -> str:
    """The whole page."""
    names = ", ".join(f"`{name}`" for name in sorted(profiles()))
    lines = [HEAD, "## Profiles", "", f"{names}.", ""]
    for name, cls in SECTIONS.items():
        lines += [f"## `{name}`", "", *table(cls, name)]
    for path, kind in KINDS.items():
        if attrs.fields(CONFIGS[kind]):
            lines += [f"## Every {kind}: `{path}.NAME`", "", *table(CONFIGS[kind], f"{path}.NAME")]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
