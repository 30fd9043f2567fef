"""Training a student from a latent store.

In: a run, its store and its teacher. Out: a run folder with checkpoints, a log, and `student/`. `trainer` is the loop,
`step` one optimiser step, `losses` and `rollouts` what it minimises, `batches` what it reads, `master_weights` and
`sharded_weights` what it updates, `checkpoint` and `run_folder` what it keeps. Open `trainer` first, then `step`.
"""
