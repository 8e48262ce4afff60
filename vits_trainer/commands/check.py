"""``check``: proves on this machine that the objective is right and that training works."""

import tempfile
from pathlib import Path

from vits_trainer import golden
from vits_trainer.commands import train_vits
from vits_trainer.config_tools import CheckConfig
from vits_trainer.errors import CheckFailedError
from vits_trainer.proofs import processor, run_proofs
from vits_trainer.replay import replay


def run(config: CheckConfig) -> int:
    """Proves step by step that training works here, compares the objective with golden values, or runs an update again.

    Raises:
        CheckFailedError: a proof failed, or a figure is beyond its bound; says what is wrong and the remedy.
    """
    if config.golden is not None:
        _compare(Path(config.golden))
    elif config.replay is not None:
        _replay(Path(config.replay))
    else:
        with tempfile.TemporaryDirectory(prefix="vits_trainer-check-") as folder:
            for name, shown in run_proofs(Path(folder), train_vits.run):
                print(f"ok  {name}: {shown}", flush=True)
    print("ALL TESTS PASSED")
    return 0


def _compare(directory: Path) -> None:
    print(processor())
    failed = 0
    for case in golden.read_cases(directory):
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


def _replay(file: Path) -> None:
    wrong = []
    for finding in replay(file):
        print(f"{'ok' if finding.is_finite else 'WRONG':5} {finding}", flush=True)
        wrong += [] if finding.is_finite else [finding.clips]
    if wrong:
        smallest = min(map(len, wrong))
        raise CheckFailedError(
            f"no finite number comes of {'; '.join(', '.join(clips) for clips in wrong if len(clips) == smallest)}."
        )
    print("Every value is finite here and now: it was the weights of that very update, or the precision of that GPU.")
