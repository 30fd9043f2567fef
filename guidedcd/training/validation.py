"""Videos sampled at intervals of training, always from the same prompts and noise."""

from __future__ import annotations

from pathlib import Path

from guidedcd.config.run import Run
from guidedcd.data import prompts
from guidedcd.devices import blame_memory
from guidedcd.inference.pipeline import StudentPipeline, batch_size
from guidedcd.models.student import Student
from guidedcd.models.teachers.protocol import Teacher
from guidedcd.training.master_weights import MasterWeights

FOLDER = "validation"


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

        pipeline = StudentPipeline(
            run=self.run, teacher=self.teacher, student=student, folder=self.folder, weights=self.folder / "student"
        )
        training, size = student.training, batch_size(self.teacher)
        evaluate, geometry = self.run.evaluate, self.teacher.geometry
        with weights.averaged(), blame_memory("the validation videos", "Leave out --train.validation.every."):
            student.eval()
            seeds = range(len(self.texts))
            videos = pipeline(self.texts, evaluate.steps, seeds, omega=evaluate.omega, batch=size).cpu()
            student.train(training)
        for seed, (text, video) in enumerate(zip(self.texts, videos, strict=True)) if write else ():
            path = self.folder / FOLDER / f"step-{step:06d}" / f"{seed:02d}-{media.slug(text)}.mp4"
            metadata = {"prompt": text, "seed": seed, "step": step, "steps": evaluate.steps, "omega": evaluate.omega}
            enlarge = media.viewing_factor(geometry.height, geometry.width)
            media.write_video(path, video, fps=geometry.fps, enlarge=enlarge, metadata=metadata)
