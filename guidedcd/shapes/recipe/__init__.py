"""How the embedded models are made: `python -m guidedcd.shapes.recipe`, about a quarter of an hour on one H200."""
