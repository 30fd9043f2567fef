"""Cost of a run, predicted before it starts: GPU-hours, memory, disk, and the savings of cheaper settings.

In: a run and a GPU. Out: the tables of `guidedcd plan`. `meter` counts the operations of networks on the meta device,
`preprocess_cost` and `training_cost` assemble them, `estimate` converts them to seconds, `gpus` lists machines,
`alternatives` varies settings, `probe` measures on the device at hand. Open `plan` first.
"""
