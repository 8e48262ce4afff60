"""Validation mel by speaker: curves and the worst one."""

from vits_trainer.evaluation.speakers import SpeakerMel, curves, worst


def test_curves_of_few_speakers_by_hand() -> None:
    met = [SpeakerMel("ava", 2, 0.5), SpeakerMel("mem", 1, 0.9), SpeakerMel("zin", 3, 0.6)]
    assert curves(met) == {
        "validation/speaker_mel_worst": 0.9,
        "validation/speaker_mel_median": 0.6,
        "validation/speaker_mel/ava": 0.5,
        "validation/speaker_mel/mem": 0.9,
        "validation/speaker_mel/zin": 0.6,
    }
    assert str(worst(met)) == "mem 0.9000 (1 clip(s))"
    assert curves([]) == {}


def test_curves_of_many_speakers_are_two() -> None:
    met = [SpeakerMel(f"s{n}", 1, n / 10) for n in range(17)]
    assert curves(met) == {"validation/speaker_mel_worst": 1.6, "validation/speaker_mel_median": 0.8}
    assert len(curves(met[:16])) == 18


def test_curves_have_names_that_trackers_take_and_none_hides_another() -> None:
    named = {"Çiya Ö.": "Çiya_Ö.", "a/b c": "a_b_c", "x/y": "x_y-2", "x y": "x_y-3", "": "_"}
    met = [SpeakerMel(name, 1, place) for place, name in enumerate(named)]
    found = [(name.removeprefix("validation/speaker_mel/"), mel) for name, mel in curves(met).items()]
    assert found[2:] == [(name, place) for place, name in enumerate(named.values())]


def test_speaker_without_a_number_is_the_worst() -> None:
    met = [SpeakerMel("a", 1, 3.0), SpeakerMel("b", 1, float("nan")), SpeakerMel("c", 1, 4.0)]
    assert worst(met).speaker == "b"
