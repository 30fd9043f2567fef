"""How the embedded models are made: `python -m guidedcd_shapes.recipe`, about a quarter of an hour on one H200."""
