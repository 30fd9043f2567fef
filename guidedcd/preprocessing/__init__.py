"""The latent store: clean latents, predictions and gradients of the frozen teacher, computed once.

In: a run and its datasets. Out: a folder of shards with clean latents, teacher predictions and energy gradients.
`preprocess` runs it all, `identity` describes a store, `shard_jobs` lists the draws of a shard, `shard_builder`
computes them, `writer` fills the folder, `store` and `shards` read it, `verify` computes samples again, `show` prints a
store, `estimates` predicts its size.
Open `preprocess` first, then `store`.
"""
