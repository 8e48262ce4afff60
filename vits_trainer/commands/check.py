"""``check``: proves on this machine that the objective is right and that training works."""

from pathlib import Path

from vits_trainer import golden
from vits_trainer.config import CheckConfig
from vits_trainer.errors import CheckFailedError, ConfigError


def run(config: CheckConfig) -> int:
    """Compares the objective with golden values; prints each figure.

    Raises:
        CheckFailedError: a figure is beyond its bound.
        ConfigError: nothing was asked for.
    """
    if config.golden is None:
        raise ConfigError("check: give --golden DIR, a folder of golden values.")
    failed = 0
    for case in golden.read_cases(Path(config.golden)):
        figures = golden.compare(case)
        for figure in figures:
            verdict = "ok" if figure.agrees else "WRONG"
            print(
                f"{verdict:5} {case.name} {figure.name}: golden {figure.golden:.9g}, ours {figure.ours:.9g}, "
                f"relative error {figure.relative_error:.2e} (at most {figure.bound:.0e})"
            )
        wrong = sum(not figure.agrees for figure in figures)
        worst = max(figures, key=lambda figure: figure.relative_error / figure.bound)
        print(f"{case.name}: {len(figures) - wrong} of {len(figures)} figures agree; nearest its bound: {worst.name}")
        failed += wrong
    if failed:
        raise CheckFailedError(
            f"{failed} figure(s) are beyond their bounds: this objective is not VITS's. Do not train."
        )
    print("ALL TESTS PASSED")
    return 0
