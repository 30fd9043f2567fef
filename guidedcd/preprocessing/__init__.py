"""The latent store: clean latents, predictions and gradients of the frozen teacher, computed once.

In: a run and its datasets. Out: a folder of shards with clean latents and teacher predictions, and for each energy a
folder of its gradients. `preprocess` runs it all, `identity` describes a store and the scores of an energy,
`score_sets` finds the folders of scores, `shard_jobs` lists the draws of a shard, `shard_builder` computes them from
what `encoding` gives, `bucket_stores` fills and joins the stores of videos of several sizes,
`store_writer` fills the folder, `shard_files` writes and `store` reads it, `shares` measures how strongly an energy
acts, `verify` computes samples again, `show` prints a store, `estimates` predicts its size.
Open `preprocess` first, then `store`.
"""
