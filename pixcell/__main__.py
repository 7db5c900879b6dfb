"""python -m pixcell: the command line, for `accelerate launch -m pixcell ...`."""

from diffusion.cli.main import entry_point

if __name__ == "__main__":
    entry_point()
