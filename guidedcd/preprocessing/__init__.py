"""The latent store: everything that depends on the frozen teacher, computed once.

In: a run and its datasets. Out: a folder of shards with clean latents, teacher predictions and energy gradients.
`preprocess` drives, `identity` keys the store, `shard_jobs` lists the work of a shard, `shard_builder` computes it,
`writer` fills the folder, `store` and `shards` read it, `verify` recomputes samples, `estimates` predicts size.
Open `preprocess` first, then `store`.
"""
