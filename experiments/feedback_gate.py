"""How often would train_feedback accept a voice that has learnt nothing?

``python -m experiments.feedback_gate VOICE DATA_DIR [--clips 4] [--judgements 40]``

Judges the same voice before and after, under other seeds: all changes are chance. ``train_feedback`` itself uses equal
seeds, under which an unchanged voice changes by exactly nothing and is never accepted; this is the worst case. Prints
how often it would have been accepted, by the paired interval and by any decrease.
"""

import argparse
import random
from pathlib import Path

from vits_trainer.data.prepared import open_prepared
from vits_trainer.distributed.runtime import Runtime
from vits_trainer.feedback.decision import MetricChange
from vits_trainer.feedback.pipeline import measure_mel


def judge(voice: str, data_dir: Path, clips: int, judgements: int) -> None:
    """Prints the accepted judgements of an unchanged voice."""
    prepared, runtime, dice = open_prepared(data_dir), Runtime("fp32", 1), random.Random(0)
    accepted = {"by the interval": 0, "by any decrease": 0}
    spread = []
    for number in range(judgements):
        rows = dice.sample(range(len(prepared.rows)), clips)
        before, after = (measure_mel(voice, prepared, rows, runtime, 1000 * number + seed) for seed in (0, 500))
        changes = [MetricChange.from_pairs(before[name], after[name]) for name in before]
        accepted["by the interval"] += all(change.is_improvement for change in changes)
        accepted["by any decrease"] += all(change.after < change.before for change in changes)
        spread.append(max(abs(change.relative) for change in changes))
    print(f"{judgements} judgements of {clips} clip(s), largest change {max(spread):.2%}: accepted {accepted}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("voice")
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--judgements", type=int, default=40)
    asked = parser.parse_args()
    judge(asked.voice, asked.data_dir, asked.clips, asked.judgements)
