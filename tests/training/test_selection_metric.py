"""``--best_metric auto``: the error rate where a recognizer is installed, else the mel."""

import logging

import pytest

from vits_trainer.config.train import TrainConfig
from vits_trainer.distributed.runtime import Runtime
from vits_trainer.evaluation import recognizers
from vits_trainer.training.selection_metric import choose_best_metric
from vits_trainer.utils.installation import install_command


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime("fp32", 1)


def chosen(runtime: Runtime, language: str | None, clips: int = 4, **settings: object) -> str:
    return choose_best_metric(TrainConfig(**settings), clips, language, None, runtime).best_metric


@pytest.mark.parametrize(
    ("is_there", "asr", "language", "metric", "line"),
    [
        (True, "auto", "eng", "cer", "(validation/cer, by whisper-tiny.en) selects"),
        (True, "auto", "kmr-script_latin", "mel", "the voice speaks kmr-script_latin, for which --asr auto has no"),
        (True, "auto", None, "mel", "the voice names no language"),
        (False, "auto", "en", "mel", f"whisper-tiny.en is not installed ({install_command('asr')})"),
        (True, "whisper-small", "deu", "cer", "by whisper-small"),
        (True, "whisper-tiny.en", "deu", "mel", "the voice speaks deu, for which --asr whisper-tiny.en"),
    ],
)
def test_metric_and_the_line_that_says_why(
    runtime: Runtime, monkeypatch, caplog, is_there: bool, asr: str, language: str | None, metric: str, line: str
) -> None:
    monkeypatch.setattr(recognizers, "is_installed", lambda need: is_there)
    with caplog.at_level(logging.INFO):
        assert chosen(runtime, language, asr=asr) == metric
    (record,) = caplog.records
    assert line in record.getMessage()


def test_metric_of_the_user_and_runs_without_validation_are_left_alone(runtime: Runtime, caplog) -> None:
    with caplog.at_level(logging.INFO):
        assert chosen(runtime, "en", best_metric="total") == "total"
        assert chosen(runtime, "en", clips=0) == "mel"
        assert chosen(runtime, "en", validation_score_clips=0) == "mel"
    assert not caplog.records
