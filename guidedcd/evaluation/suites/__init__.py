"""Benchmarks of finished videos: their prompts, the layout of their videos, and the arithmetic of their scores.

In: a suite, which a plugin registers, and a run or files of results. Out: videos in the official layout, and the
scores of the benchmark beside published ones. `contract` has the base class of suites, `results` reads files, `scores`
computes, `printing` prints, `places` has the folders of videos and results,
`generate` samples the videos, `official` runs the benchmark's own program. Open
`contract` first. Only `generate` imports torch.
"""
