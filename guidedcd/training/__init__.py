"""Training a student from a latent store.

In: a run, its store and its teacher. Out: a run folder with checkpoints, a log, and `student/`. `trainer` is the loop,
`step` one optimiser step. `objectives`, `losses` and `rollouts` define the loss, `batches` reads the store,
`master_weights` and `sharded_weights` hold the weights, `checkpoint`, `run_folder` and `log` write files.
Open `trainer` first, then `step`.
"""
