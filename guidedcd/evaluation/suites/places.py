"""The files of one benchmark of one student: videos, their records, and results. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs

from guidedcd.console import counted
from guidedcd.errors import GuidedCDError, shortened, written
from guidedcd.evaluation.suites.contract import SuiteVideo
from guidedcd.inference.student_folders import locate, results_of


@attrs.frozen
class SuiteFolder:
    """The folder of one benchmark of one student."""

    root: Path

    @classmethod
    def of(cls, name: str, run: Path | None, out: Path | None) -> SuiteFolder:
        """The folder that a call names, by default `suites/NAME` beside the evaluation of a student.

        Raises:
            GuidedCDError: Neither a run nor a folder is given, or the run has no student.
        """
        if out is not None:
            return cls(out)
        if run is None:
            raise GuidedCDError(f"give a run's folder, or with {written('--out FOLDER')} that of generated videos.")
        return cls(results_of(*locate(run)) / "suites" / name)

    @property
    def videos(self) -> Path:
        """The videos, and nothing else, since programs of benchmarks read all files there."""
        return self.root / "videos"

    @property
    def results(self) -> Path:
        """The files of results, one for each dimension."""
        return self.root / "results"

    def video(self, video: SuiteVideo) -> Path:
        """The file of a video."""
        return self.videos / video.file

    def record(self, video: SuiteVideo) -> Path:
        """The file of a video's seed and settings; it is written after the video."""
        return (self.root / "records" / video.file).with_suffix(".json")

    def missing(self, videos: Sequence[SuiteVideo]) -> list[SuiteVideo]:
        """The videos that are not there."""
        return [one for one in videos if not (self.video(one).is_file() and self.record(one).is_file())]

    def check_complete(self, videos: Sequence[SuiteVideo]) -> None:
        """Check that all videos are there.

        Raises:
            GuidedCDError: Some are missing; names the first.
        """
        if missing := self.missing(videos):
            raise GuidedCDError(
                f"{self.videos} lacks {len(missing):,} of {counted(len(videos), 'video')}, such as "
                f"'{shortened(missing[0].file)}'. Generate them first: the same command with --generate."
            )
