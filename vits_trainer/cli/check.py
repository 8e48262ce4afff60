"""``check``: proves on this machine that the objective is right and that training works."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from vits_trainer.config.tools import CheckConfig
from vits_trainer.diagnostics import golden
from vits_trainer.diagnostics.replay import replay
from vits_trainer.diagnostics.self_check import processor, run_self_checks
from vits_trainer.training import run as training_run
from vits_trainer.utils.errors import CheckFailedError


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
            for name, shown in run_self_checks(Path(folder), training_run.train):
                print(f"ok  {name}: {shown}", flush=True)
    print("ALL TESTS PASSED")
    return 0


def _compare(directory: Path) -> None:
    print(processor())
    found: list[tuple[str, golden.ComparedValue]] = []
    for case in golden.read_cases(directory):
        exact, rounded = golden.compare_case(case), golden.compare_case(case, torch.float32)
        for figure in (*exact, *rounded):
            verdict = "ok" if figure.agrees else "WRONG"
            print(
                f"{verdict:5} {case.name} {figure.name}: golden {figure.golden:.12g}, ours {figure.ours:.12g}, "
                f"error {figure.error:.2e} (at most {figure.kind.bound:.0e})"
            )
        print(
            f"{case.name}: {_agreeing(exact)} of {len(exact)} figures agree in float64, "
            f"{_agreeing(rounded)} of {len(rounded)} losses in float32"
        )
        found += [(case.name, figure) for figure in (*exact, *rounded)]
    for kind in golden.KINDS:
        name, worst = max(
            ((name, figure) for name, figure in found if figure.kind == kind), key=lambda one: one[1].error
        )
        print(f"worst of the {kind.name}: {worst.error:.2e} (at most {kind.bound:.0e}), {name} {worst.name}")
    wrong = [figure.kind for _, figure in found if not figure.agrees]
    in_float64 = sum(kind != golden.LOSS_FLOAT32 for kind in wrong)
    if in_float64:
        raise CheckFailedError(
            f"{in_float64} figure(s) are beyond their bounds in float64: this objective is not VITS's. Do not train."
        )
    if wrong:
        raise CheckFailedError(
            f"{len(wrong)} loss(es) are beyond their bounds in float32 alone: this objective is VITS's, but float32 is "
            "computed coarsely here. Unset what makes it so, such as ONEDNN_DEFAULT_FPMATH_MODE."
        )


def _agreeing(figures: Sequence[golden.ComparedValue]) -> int:
    return sum(figure.agrees for figure in figures)


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
