"""The files of a run that its report reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError
from guidedcd.evaluation import tables
from guidedcd.training.log import read_log

RUN = {
    "name?": str,
    "guidedcd?": str,
    "profile?": str,
    "command?": (str, [str]),
    "teacher?": {str: {}},
    "data?": [{str: {}}],
    "energies?": {str: {}},
    "energy?": {str: {}},
    "rewards?": {str: {}},
    "routes?": {str: {}},
    "metrics?": {str: {}},
    "solver?": {},
    "preprocess?": {},
    "student?": {},
    "train?": {},
    "evaluate?": {},
}
"""Form of the keys of run.json that the report reads; see `guidedcd.documents`."""

ROUTING = {"clips": int, "rewards": {str: int}, "without_rewards": int, "energies": {str: int}}
"""Form of routing.json: numbers of clips by objective."""


@attrs.frozen(kw_only=True)
class RunFiles:
    """A run's configuration, log and evaluation."""

    folder: Path
    run: Mapping[str, Any]
    """The content of run.json."""
    log: Sequence[Mapping[str, Any]]
    """The lines of log.jsonl; none without the file."""
    results: Path
    """The folder of the evaluation."""
    evaluation: tables.Evaluation | None
    """The content of evaluation.json."""
    routing: Mapping[str, Any] | None = None
    """The content of routing.json; None without the file, which older runs lack."""

    @property
    def name(self) -> str:
        """The run's name, or its folder's."""
        return self.run.get("name", self.folder.name)

    @classmethod
    def read(cls, folder: str | Path, results: Path | None = None) -> RunFiles:
        """The files of a run.

        Args:
            folder: The run's folder.
            results: The folder of the evaluation, by default the run's; that of a checkpoint is a folder in it.

        Raises:
            GuidedCDError: The folder contains no run, or a file in it is damaged.
        """
        folder = Path(folder)
        if not (folder / "run.json").is_file():
            raise GuidedCDError(f"{folder} is no run folder: it has no run.json.")
        results = results or folder
        return cls(
            folder=folder,
            run=read_json(folder / "run.json", RUN),
            log=read_log(folder / "log.jsonl"),
            results=results,
            evaluation=tables.read_if_there(results),
            routing=read_json(routing, ROUTING) if (routing := folder / "routing.json").is_file() else None,
        )
