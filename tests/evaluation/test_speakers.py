"""Validation mel by speaker: curves and the worst one."""

from vits_trainer.evaluation.speakers import SpeakerMel, curves, worst


def test_curves_of_few_speakers() -> None:
    mels = [SpeakerMel("ava", 2, 0.5), SpeakerMel("mem", 1, 0.9), SpeakerMel("zin", 3, 0.6)]
    assert curves(mels) == {
        "validation/speaker_mel_worst": 0.9,
        "validation/speaker_mel_median": 0.6,
        "validation/speaker_mel/ava": 0.5,
        "validation/speaker_mel/mem": 0.9,
        "validation/speaker_mel/zin": 0.6,
    }
    assert str(worst(mels)) == "mem 0.9000 (1 clip)"
    assert curves([]) == {}


def test_curves_of_many_speakers_are_worst_and_median() -> None:
    mels = [SpeakerMel(f"s{n}", 1, n / 10) for n in range(17)]
    assert curves(mels) == {"validation/speaker_mel_worst": 1.6, "validation/speaker_mel_median": 0.8}
    assert len(curves(mels[:16])) == 18


def test_metric_names_are_valid_and_unique() -> None:
    names = {"Çiya Ö.": "Çiya_Ö.", "a/b c": "a_b_c", "x/y": "x_y-2", "x y": "x_y-3", "": "_"}
    mels = [SpeakerMel(name, 1, index) for index, name in enumerate(names)]
    pairs = [(name.removeprefix("validation/speaker_mel/"), mel) for name, mel in curves(mels).items()]
    assert pairs[2:] == [(name, index) for index, name in enumerate(names.values())]


def test_speaker_with_nan_is_the_worst() -> None:
    mels = [SpeakerMel("a", 1, 3.0), SpeakerMel("b", 1, float("nan")), SpeakerMel("c", 1, 4.0)]
    assert worst(mels).speaker == "b"
