"""Log lines fit a terminal of 80 columns, and say what a user looks for."""

import io

import pytest
from tqdm import tqdm

from vits_trainer.evaluation.speakers import SpeakerMel
from vits_trainer.training.log_lines import format_duration, losses_and_speed, progress_bar, validation_line

METRICS = {
    "generator/mel": 4.17649,
    "generator/total": 34.212,
    "discriminator/total": 3.4349,
    "throughput/utterances_per_s": 113.24,
    "memory/max_allocated_gib": 61.53,
}


def test_line_of_an_update_fits_80_columns() -> None:
    line = f"update 123456/500000  {losses_and_speed(METRICS)}  {format_duration(34 * 3600)} left"
    assert line == "update 123456/500000  mel 4.176  G 34.2  D 3.43 | 113 clips/s  62 GiB  34 h left"
    assert len(line) <= 80
    slow = losses_and_speed(METRICS | {"throughput/utterances_per_s": 0.24, "memory/max_allocated_gib": 1.5})
    assert slow.endswith(" | 0.2 clips/s  1.5 GiB")


def test_validation_starts_with_the_mels_and_omits_the_adversarial_losses() -> None:
    values = {"kl": 1.5, "adversarial": 0.7, "mel": 1.3, "speaker_mel/ana": 1.2, "mel_from_text": 1.4, "total": 60.0}
    scalars = {f"validation/{name}": value for name, value in values.items()}
    assert validation_line(scalars) == "mel 1.3000  mel_from_text 1.4000  kl 1.5000"
    speakers = [SpeakerMel("ana", 3, 1.2), SpeakerMel("mem", 1, 1.4)]
    assert validation_line(scalars, speakers).endswith("kl 1.5000; the worst speaker: mem 1.4000 (1 clip)")


@pytest.mark.parametrize("total", [5, 10**7])
def test_bar_is_not_cut(total: int, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr(tqdm, "monitor_interval", 0)
    with progress_bar(total, 0, is_main=True) as bar:
        bar.ncols, bar.dynamic_ncols = 80, None
        bar.set_postfix_str("100.4 h left")
        bar.update(total)
    last = screen.getvalue().rstrip("\n").rpartition("\r")[2]
    assert len(last) <= 80
    assert last.endswith(", 100.4 h left]")
    assert f"| {total}/{total} updates [" in last


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (99, "99 s"), (150, "2 min"), (5700, "95 min"), (12240, "3.4 h")]
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
