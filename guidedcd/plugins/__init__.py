"""What a plugin is: the hooks it implements, the options it declares, and how it is found and loaded.

In: the entry points `guidedcd` of installed distributions. Out: a `Registry` of components by kind and name.
A broken plugin is reported and skipped; nothing here imports torch. `hookspecs` lists the six hooks, `configs` the
base classes of options, `registry` loads and looks up, `scaffold` writes a new package. Open `hookspecs` first.
"""
