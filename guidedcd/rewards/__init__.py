"""Scoring decoded frames: which frames are decoded, which captions are read, and how rewards are reduced to a loss.

In: latents that the student predicts, captions and routes. Out: rewards by name, differentiable to the latents.
`scorer` decodes and scores, `frozen` is the base class of pretrained rewards, `image_text` serves CLIP-like models,
`pixels` resizes and normalises, `tokenizers` reads captions. Open `scorer` first.
"""
