"""A process that computes jobs one after the other: `python -m guidedcd.proving.worker`. It is started by `pool`.

It reads one JSON object a line and answers each with a line: {} or {"error": TEXT}. The output of a job goes to
its own log. The process ends when its input does, also in the middle of a job, so that it never outlives the command.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from guidedcd.errors import GuidedCDError, described, on_command_line


def main() -> None:
    """Compute jobs until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            jobs.put(json.loads(line))
        os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    while True:
        job = jobs.get()
        log = Path(job["log"])
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a", encoding="utf-8") as handle:
            for stream in (1, 2):
                os.dup2(handle.fileno(), stream)
        answers.write(json.dumps(_answer(job)) + "\n")
        answers.flush()


def _answer(job: dict[str, Any]) -> dict[str, str]:
    """Compute a job; returns its error, if any."""
    try:
        with on_command_line():
            compute(job)
        return {}
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        return {"error": str(error) if isinstance(error, GuidedCDError) else described(error)}


def compute(job: dict[str, Any]) -> None:
    """Compute one job."""
    from guidedcd.proving import measuring

    kinds = {
        "store": measuring.fill_store,
        "student": measuring.measure_arms,
        "teacher": measuring.measure_teacher,
    }
    kinds[job["kind"]](job)


if __name__ == "__main__":
    main()
