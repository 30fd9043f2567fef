"""Sampling videos: with trained students, published students and teachers; and exporting students.

In: a run's folder or a published checkpoint, prompts and seeds. Out: videos in [0, 1], files, or an export in
`export/`. `pipeline` loads and samples a student, `published` reads T2V-Turbo files, `solvers` sample with the
teacher, `generate` writes the files of `guidedcd sample`. Open `pipeline` first.
"""
