"""Run the commands of first-energy.md in an empty folder, and print a table of the time that each took.

    python docs/tutorial/run_tutorial.py FOLDER [--offline]

Run it with the Python of an environment in which guidedcd is installed. With --offline pip uses no network.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs

PAGE = Path(__file__).parent / "first-energy.md"
OFFLINE = ("--no-index", "--no-deps", "--no-build-isolation")


@attrs.frozen
class Done:
    """A command that has run."""

    command: str
    seconds: float
    cpu_seconds: float
    output: str


def steps() -> Iterator[tuple[str, str]]:
    """The blocks of the page in their order: ("python", code) and ("console", command) for each command."""
    for language, block in re.findall(r"(?ms)^```(python|console)\n(.*?)^```", PAGE.read_text(encoding="utf-8")):
        if language == "python":
            yield language, block
        else:
            lines = block.replace("\\\n", " ").splitlines()
            yield from ((language, " ".join(line[2:].split())) for line in lines if line.startswith("$ "))


def run(
    folder: Path, python: Path | str, pip: Sequence[str | Path], *, offline: bool, smaller: Mapping[str, str]
) -> list[Done]:
    """Run every command of the page in `folder`, and write its Python code into the package.

    Args:
        folder: An empty folder.
        python: The interpreter of the environment with guidedcd.
        pip: The words that start pip for this environment.
        offline: Whether pip uses no network.
        smaller: Texts in commands by what stands in their place, for a shorter run.

    Raises:
        RuntimeError: A command failed; the message ends with what it printed.
    """
    results: list[Done] = []
    for language, block in steps():
        if language == "python":
            energy = folder / "guidedcd-loop" / "guidedcd_loop" / "energy.py"
            head = energy.read_text(encoding="utf-8").partition("class Loop")[0]
            energy.write_text(head + block, encoding="utf-8")
            continue
        command = block
        for text, replacement in smaller.items():
            command = command.replace(text, replacement)
        program, *words = shlex.split(command)
        starts = {"guidedcd": [python, "-m", "guidedcd"], "pip": [*pip], "python": [python]}
        offline_words = OFFLINE if program == "pip" and offline else ()
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        done = subprocess.run(
            [*map(str, starts[program]), *words[:1], *offline_words, *words[1:]],
            cwd=folder,
            capture_output=True,
            text=True,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        if done.returncode:
            raise RuntimeError(f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}"[-4000:])
        results.append(Done(block, time.monotonic() - started, cpu, done.stdout))
    return results


def table(results: Sequence[Done]) -> str:
    """The times as Markdown."""
    lines = ["| command | seconds | of which CPU time |", "|---|---|---|"]
    for done in results:
        short = " ".join(word for word in done.command.split(" --")[0].split())
        lines.append(f"| `{short}` | {done.seconds:.0f} | {done.cpu_seconds:.0f} |")
    seconds, cpu = sum(done.seconds for done in results), sum(done.cpu_seconds for done in results)
    return "\n".join([*lines, f"| together | {seconds:.0f} | {cpu:.0f} |"])


def main() -> None:
    """Run the tutorial and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--offline", action="store_true", help="let pip use no network")
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip"]
    print(table(run(options.folder, sys.executable, pip, offline=options.offline, smaller={})))


if __name__ == "__main__":
    main()
