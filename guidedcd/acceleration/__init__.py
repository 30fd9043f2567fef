"""Faster, exact paths through stock diffusers networks: `speed_up`, `plain` and `is_fast`."""

from guidedcd.acceleration.switch import is_fast, plain, speed_up

__all__ = ["is_fast", "plain", "speed_up"]
