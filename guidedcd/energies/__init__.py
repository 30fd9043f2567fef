"""What an energy receives, and where its gradient is taken.

In: noisy latents, a reference (`inversion`: DDIM inversion, one noising step, or clean latents) and the modules that
an energy asks to be recorded. Out: the gradient of each energy with respect to the noisy latents, in `gradients`.
Open `gradients` first.
"""
