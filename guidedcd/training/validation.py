"""Videos sampled at intervals of training, always from the same prompts and noise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from guidedcd.config.run import Run
from guidedcd.data import prompts
from guidedcd.devices import blame_memory
from guidedcd.inference.pipeline import StudentPipeline, batch_size
from guidedcd.models.student import Student
from guidedcd.models.teachers.protocol import Teacher
from guidedcd.training.master_weights import MasterWeights

FOLDER = "validation"


@contextmanager
def sampling(
    run: Run, folder: Path, teacher: Teacher, student: Student, weights: MasterWeights
) -> Iterator[StudentPipeline]:
    """A pipeline of a student in training, in eval mode and with its averaged weights where there are any."""
    training = student.training
    with weights.averaged():
        student.eval()
        yield StudentPipeline(run=run, teacher=teacher, student=student, folder=folder, weights=folder / "student")
        student.train(training)


class Validation:
    """Samples a student in training, with its averaged weights where there are any.

    Args:
        run: Its evaluation sets the number of sampling steps and omega.
        folder: The run's folder; videos are written to `validation/step-NNNNNN/`.
        teacher: Embeds prompts and decodes latents.
    """

    def __init__(self, run: Run, folder: Path, teacher: Teacher) -> None:
        self.run, self.folder, self.teacher = run, folder, teacher
        count = run.train.validation.prompts
        splits, _ = prompts.evaluation(teacher, max(3, 2 * count))
        self.texts = [prompt.text for split in splits.values() for prompt in split][:count]

    def __call__(self, student: Student, weights: MasterWeights, step: int, *, write: bool = True) -> None:
        """Sample after `step`; to be called in every process. The process with `write` writes the videos."""
        from guidedcd.data import media  # imports a video library, which training does not need

        evaluate, geometry = self.run.evaluate, self.teacher.geometry
        with (
            blame_memory("the validation videos", "Leave out --train.validation.every."),
            sampling(self.run, self.folder, self.teacher, student, weights) as pipeline,
        ):
            seeds, size = range(len(self.texts)), batch_size(self.teacher)
            videos = pipeline(self.texts, evaluate.steps, seeds, omega=evaluate.omega, batch=size).cpu()
        for seed, (text, video) in enumerate(zip(self.texts, videos, strict=True)) if write else ():
            path = self.folder / FOLDER / f"step-{step:06d}" / f"{seed:02d}-{media.slug(text)}.mp4"
            metadata = {"prompt": text, "seed": seed, "step": step, "steps": evaluate.steps, "omega": evaluate.omega}
            enlarge = media.viewing_factor(geometry.height, geometry.width)
            media.write_video(path, video, fps=geometry.fps, enlarge=enlarge, metadata=metadata)
