"""References of energies, and gradients of energies with respect to noisy latents.

In: noisy latents, and a reference (`inversion`: DDIM inversion, one noising step, or clean latents). Out: the gradient
of each energy, and the prediction of the same forward pass, in `gradients`; or, for energies of the output, the
gradient from known predictions, in `output`. `traits` tells the two apart. Preprocessing, training, the teacher's
sampler and the parity check use these functions. Open `gradients` first.
"""
