"""One component tried on a few videos or captions, without a run: what `guidedcd try` does.

In: a `Selection` (the component, a teacher and what belongs to it). Out: a table on the terminal, and a folder with
JSON, contact sheets and videos. `energy` samples the teacher with and without an energy, `reward` scores videos and
draws the gradient over their pixels, `route` prints where captions go. Open `energy` first.
"""
