"""The template of a new plugin package; `render` fills it in.

In: a kind (energy, reward or route) and a name. Out: the files of an installable package whose test passes.
"""
