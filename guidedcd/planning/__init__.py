"""What a run will cost, before anything heavy: GPU-hours, memory, disk, and what cheaper settings save.

In: a run and a GPU. Out: the tables of `guidedcd plan`. `meter` counts the operations of networks without memory,
`preprocess_cost` and `training_cost` assemble them, `estimate` converts them to seconds, `gpus` lists machines,
`alternatives` varies settings, `probe` measures on the device at hand. Open `plan` first.
"""
