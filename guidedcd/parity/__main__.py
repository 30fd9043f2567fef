"""The command `python -m guidedcd.parity`: compute, write, compare."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

# The reference numbers were computed with MKL's portable code path. Other paths round exponentials differently, which
# moves a phase of 1000 omega by 1e-3. MKL reads this at its first call.
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")

import torch
from cyclopts import App, CycloptsError
from rich.table import Table
from safetensors.torch import save_file

from guidedcd.console import console, errors
from guidedcd.errors import GuidedCDError
from guidedcd.files import check_writable, replacing
from guidedcd.parity import FAILURES, FAMILIES, Tolerance, going_on
from guidedcd.parity.compare import Row, compare_json, compare_tensors

app = App(
    name="guidedcd.parity",
    help="Recompute published reference numbers with guidedcd's own code.",
    exit_on_error=False,
    print_error=False,
)

MOST_THREADS = 1024


@app.default
def run(folder: Path, *, out: Path, compare: bool = False, threads: int = 0) -> int:
    """Compute everything that FOLDER's inputs define, write it under OUT, and optionally compare.

    Args:
        folder: A tree of fixtures, one family's folder, or one file of a family.
        out: The folder for the results, which have the layout and the names of the goldens.
        compare: Print a table of errors against the goldens; exit status 1 when one exceeds its tolerance.
        threads: CPU threads; 0 leaves the choice to torch.
    """
    if not 0 <= threads <= MOST_THREADS:
        raise GuidedCDError(f"--threads must be 0 to {MOST_THREADS}, not {threads}.")
    if threads:
        torch.set_num_threads(threads)
    if not folder.exists():
        raise GuidedCDError(f"{folder} does not exist. Give a folder of fixtures.")
    check_writable(out)
    root = folder if folder.is_dir() else folder.parent
    rows: list[Row] = []
    written = 0
    for current, family, results in _results(root):
        for name, values in results.items():
            if folder.is_file() and not name.startswith(folder.stem):
                continue
            target = out / current.relative_to(root) / name
            _write(target, values)
            written += 1
            golden = current / name
            if compare and golden.is_file():
                rows += _compare(golden, values, family)
    for failure in FAILURES:
        errors.print(f"not computed: {failure}")
    if not written and not FAILURES:
        raise GuidedCDError(f"{folder} contains no fixture that guidedcd can compute.")
    console.print(f"{written} files written to {out}")
    if not compare:
        return 1 if FAILURES else 0
    _print(rows, root)
    failed = [row for row in rows if not row.ok]
    console.print(
        f"{len(rows) - len(failed)} of {len(rows)} values agree" + (f", {len(failed)} do not" if failed else "")
    )
    return 1 if failed or FAILURES or not rows else 0


def _results(root: Path) -> Iterator[tuple[Path, ModuleType, dict[str, Any]]]:
    families = []
    for name in FAMILIES:
        try:
            families.append(importlib.import_module(f"guidedcd.parity.{name}"))
        except ModuleNotFoundError as error:
            if error.name != f"guidedcd.parity.{name}":
                raise
    for name, folders, files in os.walk(root):
        folders.sort()
        if not files:
            continue
        current = Path(name)
        for family in families:
            with going_on(current):
                results = family.compute(current)
                if results:
                    yield current, family, results


def _write(path: Path, values: Any) -> None:
    with replacing(path) as partial:
        if path.suffix == ".safetensors":
            save_file({key: value.detach().cpu().contiguous().clone() for key, value in values.items()}, partial)
        else:
            partial.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _compare(golden: Path, values: Any, family: ModuleType) -> list[Row]:
    tolerance = getattr(family, "tolerance", lambda file, key: Tolerance())
    file = f"{golden.parent.name}/{golden.name}"
    if golden.suffix == ".safetensors":
        return compare_tensors(golden, values, lambda key: tolerance(file, key))
    return compare_json(golden, values, lambda key: tolerance(file, key))


def _print(rows: list[Row], root: Path) -> None:
    """Print every tensor, the worst number of every JSON file, and every failure."""
    table = Table("file", "key", "max error", "golden max", "tolerance", "ok", box=None, pad_edge=False)
    for file, group in itertools.groupby(rows, key=lambda row: row.file):
        lines = list(group)
        if file.suffix == ".json":
            good = [row for row in lines if row.ok and not row.note]
            worst = max(good, key=lambda row: row.error / row.limit if row.limit else 0.0, default=None)
            lines = [row for row in lines if row is worst or not row.ok]
        for row in lines:
            numbers = (f"{row.error:.3g}", f"{row.largest:.3g}", f"{row.limit:.3g}")
            mark = "[green]yes" if row.ok else "[bold red]NO"
            name = str(row.file.relative_to(root))
            table.add_row(name, row.key, *(numbers if not row.note else (row.note, "", "")), mark)
    console.print(table)


def main() -> None:
    """Run the command; a user's mistake is reported in one line, with exit status 2."""
    try:
        status = app(sys.argv[1:], result_action="return_value")
    except (GuidedCDError, CycloptsError) as error:
        errors.print(f"error: {' '.join(str(error).split())}", markup=False)
        sys.exit(2)
    sys.exit(status or 0)


if __name__ == "__main__":
    main()
