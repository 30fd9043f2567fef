"""The mathematics of the method: pure functions of tensors, without configuration and without files.

In: noisy latents, timesteps and predictions. Out: noise levels (`schedule`), guided ODE steps (`guidance`),
consistency functions and distances (`consistency`), few-step samplers (`sampler`), embeddings of guidance inputs
(`embeddings`), counter-based random streams (`randomness`), and `Seen`, the view of one step that an energy receives.
Open `schedule` first, then `guidance`.
"""
