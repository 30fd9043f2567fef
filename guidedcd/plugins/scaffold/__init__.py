"""The template of a new plugin package, and the function that fills it in: see `render`.

In: a kind (energy, reward or route) and a name. Out: the files of an installable package with one passing test.
"""
