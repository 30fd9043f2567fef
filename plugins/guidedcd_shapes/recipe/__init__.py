"""Training of the embedded models: `python -m guidedcd_shapes.recipe`, about a quarter of an hour on one H200."""
