"""Training from shards equals training from wavs."""

from pathlib import Path

from tests.support.preparation import prepare_into
from tests.support.voices import metrics, prepared_folder, train_flags
from vits_trainer.cli.main import main


def test_training_from_shards_has_the_metrics_of_training_from_wavs(tmp_path: Path) -> None:
    settings = {"max_updates": 2, "data_workers": 2, "validation_fraction": 0.2}
    prepared_folder(tmp_path / "a")
    (tmp_path / "b").mkdir()
    prepare_into(tmp_path / "b" / "training", tmp_path / "a" / "source", shards=2)
    results = []
    for name in ("a", "b"):
        assert main(["train_vits", *train_flags(tmp_path / name, **settings)]) == 0
        lines = metrics(tmp_path / name)
        timed = ("time/", "throughput/", "memory/")
        results.append([{k: v for k, v in line.items() if not k.startswith(timed) and k != "time"} for line in lines])
    assert results[0] == results[1]
    assert any("validation/mel" in line for line in results[0])
