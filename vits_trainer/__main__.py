"""``python -m vits_trainer <command>``, the same as ``vits-trainer <command>``."""

from vits_trainer.cli.main import entry_point

if __name__ == "__main__":
    entry_point()
