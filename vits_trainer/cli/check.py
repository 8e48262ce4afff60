"""``check``: verifies the objective and training on this machine."""

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
from vits_trainer.utils.strings import counted


def run(config: CheckConfig) -> int:
    """Runs the self-checks, compares the objective with golden values, or replays an update.

    Raises:
        CheckFailedError: a check failed, or a value exceeds its tolerance. The message names the remedy.
    """
    if config.golden is not None:
        _compare(Path(config.golden))
    elif config.replay is not None:
        _replay(Path(config.replay))
    else:
        with tempfile.TemporaryDirectory(prefix="vits_trainer-check-") as directory:
            for name, result in run_self_checks(Path(directory), training_run.train):
                print(f"ok  {name}: {result}", flush=True)
    print("ALL TESTS PASSED")
    return 0


def _compare(directory: Path) -> None:
    print(processor())
    compared: list[tuple[str, golden.ComparedValue]] = []
    for case in golden.read_cases(directory):
        exact, rounded = golden.compare_case(case), golden.compare_case(case, torch.float32)
        for value in (*exact, *rounded):
            status = "ok" if value.agrees else "WRONG"
            print(
                f"{status:5} {case.name} {value.name}: golden {value.golden:.12g}, ours {value.ours:.12g}, "
                f"error {value.error:.2e} (at most {value.kind.bound:.0e})"
            )
        print(
            f"{case.name}: {_count_agreeing(exact)} of {len(exact)} values agree in float64, "
            f"{_count_agreeing(rounded)} of {len(rounded)} losses in float32"
        )
        compared += [(case.name, value) for value in (*exact, *rounded)]
    for kind in golden.KINDS:
        name, worst = max(
            ((name, value) for name, value in compared if value.kind == kind), key=lambda item: item[1].error
        )
        print(f"worst of the {kind.name}: {worst.error:.2e} (at most {kind.bound:.0e}), {name} {worst.name}")
    wrong = [value.kind for _, value in compared if not value.agrees]
    in_float64 = sum(kind != golden.LOSS_FLOAT32 for kind in wrong)
    if in_float64:
        raise CheckFailedError(
            f"Beyond tolerance in float64: {counted(in_float64, 'value')}: this objective differs from VITS's. Do not "
            "train with it."
        )
    if wrong:
        raise CheckFailedError(
            f"Beyond tolerance only in float32: {counted(len(wrong), 'loss', 'losses')}: the objective is VITS's, "
            "but float32 has reduced precision here. Unset the cause, such as ONEDNN_DEFAULT_FPMATH_MODE."
        )


def _count_agreeing(values: Sequence[golden.ComparedValue]) -> int:
    return sum(value.agrees for value in values)


def _replay(file: Path) -> None:
    wrong = []
    for result in replay(file):
        print(f"{'ok' if result.is_finite else 'WRONG':5} {result}", flush=True)
        wrong += [] if result.is_finite else [result.clips]
    if wrong:
        smallest = min(map(len, wrong))
        raise CheckFailedError(
            f"NaN or Inf is reproduced by: {'; '.join(', '.join(clips) for clips in wrong if len(clips) == smallest)}."
        )
    print("All values are finite in this replay: the cause was the weights at that update or that GPU's precision.")
