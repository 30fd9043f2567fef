"""Faster, exact paths through stock diffusers networks.

In: a `UNet3DConditionModel`, a transformer of repeated blocks or an autoencoder, and a value of the option `fast`. Out:
the same network, switched in place to channels-last layers, fused kernels, CUDA graphs or compiled functions; values
agree up to rounding. `choose` interprets the option, `speed_up` switches, `restore` switches back. `layers` computes
what the stock layers of a UNet compute, `blocks` those of a transformer, `autoencoders` those of videos' autoencoders.
`attention_backend` chooses kernels, `kernels` contains Triton code, `activation_checkpointing` trades memory for time.
Open `switch` first, then `layers`.
"""

from guidedcd.acceleration.options import choose
from guidedcd.acceleration.switch import is_fast, restore, speed_up

__all__ = ["choose", "is_fast", "restore", "speed_up"]
