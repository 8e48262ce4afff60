"""Ranks select the best checkpoint, and stop early, by one metric and alike."""

import json
from pathlib import Path

import pytest

from tests.support.launch import flags_of, run
from tests.support.voices import metrics, prepared_folder
from vits_trainer.evaluation.recognizers import has_whisper

pytestmark = [pytest.mark.ranks, pytest.mark.skipif(not has_whisper(), reason="the extra 'asr' is not installed")]

SETTINGS = {"language": "en", "patience": 1, "validate_every_updates": 1, "validation_fraction": 0.2, "epochs": 4}
SETTINGS |= {"report_to": "none", "batch_size": 2, "learning_rate": 0.3}


@pytest.mark.parametrize(("script", "metric"), [(None, "cer"), ("lacks_recognizer", "mel")])
def test_ranks_stop_by_the_error_rate_unless_one_lacks_the_recognizer(
    tmp_path: Path, script: str | None, metric: str
) -> None:
    data = prepared_folder(tmp_path, clips=10)
    ended = run(2, script, flags_of(tmp_path, data, **SETTINGS))
    assert ended.returncode == 0, ended.stderr
    assert ("whisper-tiny.en is not installed" in ended.stderr) == (metric == "mel")
    best = json.loads((tmp_path / "checkpoints/best.json").read_text())
    assert set(best) == {"checkpoint", f"validation/{metric}"}
    validated = {line["update"]: line for line in metrics(tmp_path) if "validation/mel" in line}
    assert all(("validation/cer" in line) == (metric == "cer") for line in validated.values())
    state = json.loads((tmp_path / f"checkpoints/checkpoint-{max(validated)}/state.json").read_text())["state"]
    assert state["selection"]["best_score"] == best[f"validation/{metric}"]
    assert f"Early stopping at update {max(validated)}: validation/{metric} has not improved" in ended.stderr
