"""Plugins: the hooks that they implement, the options that they declare, and their discovery.

In: the entry points `guidedcd` of installed distributions. Out: a `Registry` of components by kind and name.
A broken plugin is reported and skipped. Nothing here imports torch. Open `hookspecs` first, which defines the
seven hooks. `configs` has the base classes of options, `optional` the optional attributes of components, `registry`
loads plugins, `objects` handles components that are objects of the calling program, `scaffold` writes a new package.
"""
