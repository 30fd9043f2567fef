"""Captioned clips, prompts and routes: the data of a run before any network reads it.

In: the datasets of a run. Out: `Clip` objects in the teacher's `Geometry`, mixtures of datasets, evaluation prompts,
and the `Route` of each sample. `media` reads and writes video files; `inspection` explains which clips a run would use.
Open `clips` first, then `routing`.
"""
