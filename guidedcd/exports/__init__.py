"""Formats in which a trained student leaves this package; `guidedcd.export` chooses among them."""
