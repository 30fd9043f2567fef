"""Captioned clips, prompts and routes: everything that is known about samples before a network sees them.

In: the datasets of a run. Out: `Clip` objects in the teacher's `Geometry`, mixtures of datasets, evaluation prompts,
and the `Route` of each sample. `media` reads and writes video files; `inspection` explains which clips a run would use.
Open `clips` first, then `routing`.
"""
