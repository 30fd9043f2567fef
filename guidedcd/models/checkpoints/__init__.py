"""Readers and writers of published checkpoint formats, built on stock diffusers and transformers modules."""
