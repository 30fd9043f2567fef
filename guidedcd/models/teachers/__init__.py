"""Teachers: adapters from pretrained video models to canonical latents."""
