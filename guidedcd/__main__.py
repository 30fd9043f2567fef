"""Run `python -m guidedcd`, which is what `accelerate launch -m guidedcd` starts."""

from guidedcd.cli import main

if __name__ == "__main__":
    main()
