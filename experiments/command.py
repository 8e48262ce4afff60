"""Runs a command of vits-trainer in this process, for the experiments."""

from vits_trainer.cli.main import main


def run(command: str, *words: object, **flags: object) -> None:
    """Ends the experiment if the command fails."""
    argv = [command, *map(str, words), *(word for flag, value in flags.items() for word in (f"--{flag}", str(value)))]
    code = main(argv)
    if code:
        raise SystemExit(f"{command} ended with exit code {code}")
