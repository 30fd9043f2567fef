"""Triton kernels of norms, gated activations and residuals, with their gradients.

`forward` and `backward` contain the kernels, `group_norm` those of group norms, `launch` the cached launcher,
`autograd` the autograd functions around them and `operators` the custom operators that compiled code calls.
Importing this package imports no Triton; open `autograd` first.
"""
