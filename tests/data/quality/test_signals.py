"""What is suspicious, compared with values computed by hand."""

import numpy as np
import pytest

from vits_trainer.config.check_data import Thresholds
from vits_trainer.data.audio import Reason, Rejection
from vits_trainer.data.quality.measurements import FINGERPRINT_SIZE, SoundMeasurements
from vits_trainer.data.quality.signals import (
    Finding,
    Measured,
    deviations,
    letters,
    of_copies,
    of_rejections,
    of_sound,
    of_split,
    ranked,
)
from vits_trainer.data.quality.survey import PieceMeasurements, Survey

SOUND = SoundMeasurements(2.1, 2.0, 0.05, 0.05, 0.0, -20.0, 0.0, 0.0, 7500.0, 40.0)


def survey(sounds: list[SoundMeasurements], texts: list[str], speakers: list[str] | None = None) -> Survey:
    made = Survey()
    count = len(sounds)
    rng = np.random.default_rng(0)
    prints = rng.standard_normal((count, FINGERPRINT_SIZE))
    prints /= np.linalg.norm(prints, axis=1, keepdims=True)
    made.add(
        PieceMeasurements(
            [f"c{n}" for n in range(count)], texts, speakers or [""] * count, np.array(sounds, np.float32),
            prints.astype(np.float16), list(range(1, count + 1)), {},
        )
    )  # fmt: skip
    return made


def test_deviations_are_those_of_median_and_mad_without_outliers() -> None:
    values = np.array([*np.arange(1.0, 30.0), 1e6])
    # Without the outlier: median 15, deviations 0, 1, 1, ..., 14, 14 with median 7.
    assert deviations(values, ["a"] * 30, 0.1)[:29] == pytest.approx((values[:29] - 15) / (1.4826 * 7))
    half = np.concatenate([np.linspace(-1, 1, 70), np.full(30, 50.0)])  # 30 % faults do not widen the deviation
    assert deviations(half, ["a"] * 100, 0.01)[-1] == pytest.approx(50 / (1.4826 * 0.5), rel=0.02)


def test_a_speaker_with_many_clips_has_own_deviations_and_others_share_theirs() -> None:
    speakers = ["slow"] * 20 + ["fast"] * 20 + [f"rare{n}" for n in range(20)]
    values = np.concatenate([np.linspace(9, 11, 20), np.linspace(4, 6, 20), np.linspace(1, 3, 20)])
    values[7] = np.nan
    scores = deviations(values, speakers, 0.1)
    assert np.isnan(scores[7])
    assert scores[20:40] == pytest.approx(scores[40:], abs=1e-9)
    assert np.nanmax(np.abs(scores)) < 3
    assert deviations(np.full(5, np.nan), ["a"] * 5, 0.1).tolist() == pytest.approx([np.nan] * 5, nan_ok=True)
    assert deviations(np.array([1.0, 1.0, 2.0]), ["a"] * 3, 0.5).tolist() == [0, 0, 2]  # the floor


def test_letters_of_any_script_count_and_digits_count_as_words() -> None:
    assert letters("Çawa yî?") == 6
    assert letters("1914, a") == 17
    assert letters("你好。") == 2
    assert letters("... —") == 0


@pytest.mark.parametrize(
    ("change", "text", "signal", "reason"),
    [
        ({"speech_s": 4.2}, None, "rate", "0.210 s per letter"),
        ({}, "so" * 20, "rate", "0.050 s per letter"),
        ({}, "?!", "rate", "too short or too long"),
        ({"snr_db": 9.7}, None, "snr", "noise 10 dB below"),
        ({"level_dbfs": -32.0}, None, "level", "level of -32 dB"),
        ({"bandwidth_hz": 4000}, None, "bandwidth", "nothing above 4000 Hz"),
        ({"clipped_fraction": 0.002}, None, "clipping", "0.20% of the samples"),
        ({"dc_offset": 0.03}, None, "dc_offset", "3.0%"),
        ({"digital_silence_s": 0.5}, None, "digital_silence", "0.5 s"),
        ({"leading_silence_s": 2.5}, None, "edge_silence", "2.5 s of silence"),
        ({"trailing_silence_s": 2.5}, None, "edge_silence", "2.5 s of silence"),
    ],
)
def test_each_signal_finds_its_fault_and_no_other_clip(
    change: dict[str, float], text: str | None, signal: str, reason: str
) -> None:
    rng = np.random.default_rng(1)
    sounds = [
        SOUND._replace(speech_s=float(rng.normal(2, 0.1)), level_dbfs=float(rng.normal(-20, 1))) for _ in range(40)
    ]
    texts = ["twenty letters, right ok"] * 40
    sounds[11] = SOUND._replace(**change)
    texts[11] = text or texts[11]
    found = [pair for measured in of_sound(survey(sounds, texts), Thresholds()) for pair in measured.findings()]
    assert [(row, finding.signal) for row, finding in found] == [(11, signal)]
    assert reason in found[0][1].reason
    assert found[0][1].severity > 1


def test_an_unreadable_clip_is_only_unreadable() -> None:
    made = survey([SOUND] * 4 + [SoundMeasurements(*[np.nan] * 10)], ["one two three"] * 5)
    made.rejections[4] = Rejection(Reason.TRUNCATED_AUDIO, "3 of 9 samples")
    assert [pair for measured in of_sound(made, Thresholds()) for pair in measured.findings()] == []
    ((row, finding),) = of_rejections(made)
    assert (row, finding.signal, finding.reason) == (4, "unreadable", "truncated-audio: 3 of 9 samples")


def test_of_copies_the_first_is_good_unless_their_texts_differ() -> None:
    made = survey([SOUND] * 6, ["Same text.", "other", "same TEXT", "x", "y", "z"])
    made.digests[2] = made.digests[0]
    made.digests[4] = made.digests[3]
    prints = made.fingerprints
    prints[5] = prints[1]
    made._fingerprints = [prints]
    found = dict(of_copies(made, 0.97))
    assert sorted(found) == [1, 2, 3, 4, 5]
    assert found[2].reason == "equals c0"
    assert found[3].reason == "equals c4, which has another text"
    assert found[4].reason == "equals c3, which has another text"
    assert found[1].reason.startswith("sounds like (1.000) c5, which has another text")


def test_training_clips_with_the_text_of_a_validation_clip_are_found() -> None:
    made = survey([SOUND] * 4, ["One, two.", "three", "one two", "four"])
    ((row, finding),) = of_split(made, [2])
    assert (row, finding.reason) == (0, "the validation clip c2 has the same text")
    assert of_split(made, []) == []


def test_the_worst_clips_come_first_and_one_signal_does_not_outweigh_several() -> None:
    found = [(0, "a", 50.0), (1, "a", 1.8), (1, "b", 1.9), (2, "b", 1.1)]
    order = ranked([(row, Finding(signal, severity, "")) for row, signal, severity in found])
    assert [one.row for one in order] == [1, 0, 2]
    assert [finding.signal for finding in order[0].findings] == ["b", "a"]
    assert order[1].score == 3


def test_severity_grows_beyond_the_limit_on_either_side() -> None:
    values = np.array([-8.0, -4.0, 0.0, 4.0, 8.0, np.nan])
    found = Measured("x", values, "{value}", above=4.0, below=-4.0).findings()
    assert [(row, finding.severity) for row, finding in found] == [(0, 2.0), (4, 2.0)]
    zero = Measured("x", np.array([0.5, 0.0, -0.5]), "{value}", below=0.0).findings()
    assert [(row, finding.severity) for row, finding in zero] == [(2, 1.5)]
    low = Measured("x", np.array([7.5, 15.0, -3.0]), "{value}", below=15.0).findings()
    assert [(row, finding.severity) for row, finding in low] == [(0, 2.0), (2, 3.0)]
