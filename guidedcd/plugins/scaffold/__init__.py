"""The template of a new plugin package; `render` fills it in.

In: a kind of component and a name. Out: the files of an installable package whose test passes.
"""
