"""Training on data sets as they lie: counted rejections, exact resumption, and ``datasets.Dataset``."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.unprepared import dataset_of, rows, write_dataset
from tests.support.voices import metrics, train_flags, weights
from vits_trainer import TrainConfig, train
from vits_trainer.cli.main import main
from vits_trainer.config.parser import parse
from vits_trainer.data import parquet_rows

pytestmark = pytest.mark.run


def written() -> list[dict[str, Any]]:
    clips = rows(20)
    clips[4]["audio"] = {"bytes": b"no recording " * 40, "path": None}
    return clips


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    common = {"streaming": True, "max_rejected_fraction": 0.2, "max_duration_s": 2, "validation_fraction": 0.1}
    return {"runs_dir": folder / "training/runs", **common, **changes}


def test_run_resumed_within_an_epoch_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_rows, "GROUP_ROWS", 3)
    source = write_dataset(tmp_path / "source", [written()[:13], written()[13:]], row_group=8)
    for name, runs in (("whole", ({"max_updates": 7},)), ("halves", ({"max_updates": 3}, {"max_updates": 7}))):
        (tmp_path / name).mkdir()
        for changes in runs:
            flags = train_flags(
                tmp_path / name, **settings(tmp_path / name, dataset=source, resume_from_checkpoint="auto", **changes)
            )
            assert main(["train_vits", *flags]) == 0
    assert weights(tmp_path / "whole", 7) == weights(tmp_path / "halves", 7)
    lines = metrics(tmp_path / "whole")
    assert max(line.get("data/rejected/unreadable-audio", 0) for line in lines) == 1
    log = (tmp_path / "whole/training/runs/run/train.log").read_text()
    assert "epoch 1: 17 trained + 1 rejected + 2 validation = 20 clips" in log
    vocabulary = json.loads((tmp_path / "whole/final_model/vocab.json").read_text())
    assert {"s", "i", "l", "a", "v", "0", "9"} <= {token.lower() for token in vocabulary}


def test_train_takes_a_dataset(tmp_path: Path) -> None:
    flags = train_flags(tmp_path, **settings(tmp_path, max_updates=1, streaming=False))
    config = parse("train_vits", TrainConfig, flags)
    result = train(config, dataset_of(written()))
    assert (result.status, result.update, result.voice) == ("done", 1, tmp_path / "final_model")
