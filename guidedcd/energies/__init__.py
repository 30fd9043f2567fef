"""References of energies, and gradients of energies with respect to noisy latents.

In: noisy latents, and a reference (`inversion`: DDIM inversion, one noising step, or clean latents). Out: the gradient
of each energy, and the prediction of the same forward pass, in `gradients`. Preprocessing, the teacher's sampler and
the parity check all use these functions. Open `gradients` first.
"""
