"""Jobs computed side by side in separate processes, each after the job that it needs. No torch here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from guidedcd.files import child_environment


@attrs.frozen(kw_only=True)
class Job:
    """One computation, see `measuring`."""

    id: str
    content: Mapping[str, Any]
    """What the worker receives, as JSON values."""
    after: str | None = None
    """The id of the job that must end before; if it fails, this job fails with the same error."""


@attrs.define
class Pool:
    """Computes jobs in the listed order; a job begins once the job that it needs has ended."""

    parallel: int
    budget: float
    """Seconds after which no job begins."""
    finished: Callable[[Job, str | None], None]
    """Called once for every job that ended, with its error; None if there is none."""
    _waiting: list[Job] = attrs.field(factory=list, init=False)
    _running: set[str] = attrs.field(factory=set, init=False)
    _errors: dict[str, str | None] = attrs.field(factory=dict, init=False)
    _processes: list[subprocess.Popen[str]] = attrs.field(factory=list, init=False)
    _stopped: bool = attrs.field(default=False, init=False)
    _changed: threading.Condition = attrs.field(factory=threading.Condition, init=False)

    def compute(self, jobs: Sequence[Job]) -> list[Job]:
        """Compute all jobs; returns those that did not begin within the budget.

        An interruption ends the processes.
        """
        self._waiting = list(jobs)
        began = time.monotonic()
        threads = [
            threading.Thread(target=self._serve, args=(began,), daemon=True)
            for _ in range(min(self.parallel, len(jobs)))
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)  # so that Ctrl-C is noticed
        finally:
            with self._changed:
                self._stopped = True
                self._changed.notify_all()
                for process in self._processes:
                    process.kill()
        return self._waiting

    def _serve(self, began: float) -> None:
        """Compute one job after the other in one process."""
        process: subprocess.Popen[str] | None = None
        while (job := self._next(began)) is not None:
            error = self._errors.get(job.after) if job.after is not None else None
            if error is None:
                if process is None or process.poll() is not None:
                    process = self._start()
                error = _compute_in(process, job.content)
            with self._changed:
                if self._stopped:
                    return
                self._running.discard(job.id)
                self._errors[job.id] = error
                self.finished(job, error)
                self._changed.notify_all()
        if process is not None and process.stdin is not None:
            process.stdin.close()
            process.wait()

    def _next(self, began: float) -> Job | None:
        """The next job that can begin; None once none will."""
        with self._changed:
            while not self._stopped and self._waiting:
                if time.monotonic() - began > self.budget:
                    return None
                unfinished = {job.id for job in self._waiting} | self._running
                ready = next((job for job in self._waiting if job.after not in unfinished), None)
                if ready is not None:
                    self._waiting.remove(ready)
                    self._running.add(ready.id)
                    return ready
                self._changed.wait(1.0)
            return None

    def _start(self) -> subprocess.Popen[str]:
        threads = max(1, (os.cpu_count() or 1) // self.parallel)
        environment = {"OMP_NUM_THREADS": str(threads), **child_environment()}
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "guidedcd.proving.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the command alone, which then ends the process
        )
        with self._changed:
            self._processes.append(process)
        return process


def _compute_in(process: subprocess.Popen[str], content: Mapping[str, Any]) -> str | None:
    """Compute a job in a worker's process; returns its error."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps(content) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
    except OSError:
        answer = ""
    if not answer:
        process.wait()
        return f"its process ended with {process.returncode} (killed for memory?)"
    return json.loads(answer).get("error")
