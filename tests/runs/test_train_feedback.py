"""``train_feedback``: trains on corrections, and replaces the voice if it is better."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from tests.support.audio import encode, voice
from tests.support.voices import many_speakers, prepared_folder, train_flags
from vits_trainer.cli.main import main
from vits_trainer.data.prepared import open_prepared, train_validation_split
from vits_trainer.evaluation.recognizers import has_whisper
from vits_trainer.feedback import pipeline, replay_mix


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    prepared_folder(folder)
    assert main(["train_vits", *train_flags(folder, max_updates=10)]) == 0
    return folder


@pytest.fixture
def served(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained / "final_model", tmp_path / "final_model")


def corrections(folder: Path, count: int = 4, loudness: float = 1) -> Path:
    folder.mkdir(exist_ok=True)
    for n in range(count):
        spoken = loudness * voice(0.9 + 0.1 * n, 16000, 120 + 20 * n)
        (folder / f"word{n}.wav").write_bytes(encode(spoken, 16000))
        (folder / f"word{n}.txt").write_text(f"number {n}\n")
    return folder


def flags(served: Path, feedback: Path, output: Path, **changes: object) -> list[str]:
    # The voice is random noise: the default's low learning rate would change it too little.
    settings = {"learning_rate": 2e-3, "epochs": 5, "replay_fraction": 0.5, "report_to": "none", "run_name": "learnt"}
    settings |= changes
    settings |= {"feedback_dir": feedback, "model_dir": served, "output_dir": output}
    return ["train_feedback", *(word for key, value in settings.items() for word in (f"--{key}", str(value)))]


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def verdict(output: Path) -> dict:
    return json.loads((output.with_name(f"{output.name}_work") / "verdict.json").read_text())


def test_better_voice_replaces_the_old_one_and_can_be_rolled_back(
    served: Path, trained: Path, tmp_path: Path, capsys
) -> None:
    before, new = hashes(served), tmp_path / "new"
    feedback = corrections(tmp_path / "feedback")
    settings = {"data_dir": trained / "training", "max_regression": 1}
    assert main(flags(served, feedback, new, **settings)) == 0
    decision = verdict(new)
    assert decision["accepted"]
    assert decision["learnt"] == ["word0", "word1", "word2", "word3"]
    for change in decision["figures"]["corrections"].values():
        assert change["after"] < 0.97 * change["before"]
    assert {**hashes(new), "learnt.json": hashes(served)["learnt.json"]} == hashes(served) != before
    assert hashes(tmp_path / "final_model_versions/0") == before

    # half of the clips are replayed training clips, none of them held out
    mix = json.loads((tmp_path / "new_work/runs/learnt/facts.json").read_text())["data"]
    assert (mix["clips"], mix["replayed"], mix["passes"]) == (8, 4, 5)

    # a second time, nothing is new; a changed file is the only new correction
    capsys.readouterr()
    assert main(flags(served, feedback, new, **settings)) == 0
    assert "Nothing new" in capsys.readouterr().out
    (feedback / "word1.txt").write_text("number 7\n")
    (feedback / "word1.wav").write_bytes(encode(0.1 * voice(1.2, 16000, 400), 16000))
    assert main(flags(served, feedback, new, **settings)) == 0
    assert verdict(new)["learnt"] == ["word1"]
    assert verdict(new)["version"] == 2

    # after two rollbacks the corrections are learnt again
    assert main(flags(served, feedback, new, rollback=True)) == 0
    assert main(flags(served, feedback, new, rollback=True)) == 0
    assert hashes(served) == before
    assert main(flags(served, feedback, new, rollback=True)) == 2
    assert main(flags(served, feedback, new, **settings)) == 0
    assert len(verdict(new)["learnt"]) == 4
    assert verdict(new)["version"] == 3


def test_voice_that_regresses_is_rejected_and_the_served_one_unchanged(
    served: Path, trained: Path, tmp_path: Path, capsys
) -> None:
    settings = {"data_dir": trained / "training", "replay_fraction": 0, "epochs": 10, "max_regression": 0}
    learnt = flags(served, corrections(tmp_path / "good"), tmp_path / "better", **settings)
    assert main(learnt) == 0
    before = hashes(served)
    feedback = corrections(tmp_path / "feedback", loudness=0.001)  # it becomes almost silent
    assert main(flags(served, feedback, tmp_path / "new", **settings)) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert "REJECTED" in message
    assert "->" in message
    assert hashes(served) == before
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "new_work/refused/model.safetensors").is_file()
    assert not verdict(tmp_path / "new")["accepted"]
    # corrections of a rejected voice stay new
    assert json.loads((served / "learnt.json").read_text())["version"] == 1


def test_corrections_learnt_before_are_replayed(served: Path, tmp_path: Path) -> None:
    feedback = corrections(tmp_path / "feedback", count=2)
    assert main(flags(served, feedback, tmp_path / "new")) == 0
    corrections(feedback, count=4)
    assert main(flags(served, feedback, tmp_path / "new", epochs=3)) in (0, 1)
    mix = json.loads((tmp_path / "new_work/runs/learnt/facts.json").read_text())["data"]
    assert (mix["clips"], mix["replayed"], mix["passes"]) == (4, 2, 3)


def test_unreadable_corrections_and_missing_training_clips_are_reported(
    served: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    feedback = corrections(tmp_path / "feedback")
    (feedback / "word0.wav").write_bytes(b"no audio")
    (feedback / "word1.txt").unlink()
    for name in ("-word", "one, two"):  # names that rejected.csv has to escape
        (feedback / f"{name}.txt").write_text("number 4")
        (feedback / f"{name}.wav").write_bytes(b"no audio")
    assert main(flags(served, feedback, tmp_path / "new")) == 0
    rejected = (tmp_path / "new_work/corrections/rejected.csv").read_text()
    assert "word0,unreadable-audio" in rejected
    assert "word1,empty-text" in rejected
    decision = verdict(tmp_path / "new")
    assert decision["learnt"] == ["word2", "word3"]
    assert "NO TRAINING CLIPS" in caplog.text
    assert decision["held_out"] is None


def test_missing_corrections_are_reported(served: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "feedback").mkdir()
    assert main(flags(served, tmp_path / "feedback", tmp_path / "new")) == 2
    assert "NAME.wav" in capsys.readouterr().err


def test_served_voice_is_never_the_output(served: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    feedback = corrections(tmp_path / "feedback")
    assert main(flags(served, feedback, served)) == 2
    assert "Choose another folder" in capsys.readouterr().err


def test_several_processes_are_rejected(served: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(flags(served, tmp_path, tmp_path / "new")) == 2
    assert "without accelerate launch" in capsys.readouterr().err


def test_training_starts_from_the_base_model_if_no_voice_is_served(served: Path, tmp_path: Path) -> None:
    base = shutil.copytree(served, tmp_path / "base")
    feedback = corrections(tmp_path / "feedback", count=2)
    absent = tmp_path / "absent"
    assert main(flags(absent, feedback, tmp_path / "new", base_model=base)) == 0
    assert {**hashes(tmp_path / "new"), "learnt.json": hashes(absent)["learnt.json"]} == hashes(absent)


def test_corrections_and_held_out_clips_that_the_voice_cannot_read_are_left_out(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Texts that are too long for their recordings in the voice's own tokens, here with numbers as words."""
    served = shutil.copytree(trained / "final_model", tmp_path / "final_model")
    data = shutil.copytree(trained / "training", tmp_path / "training", ignore=shutil.ignore_patterns("runs"))
    _, held_out = train_validation_split(open_prepared(data), 0.2, 64, seed=1234)
    lines = (data / "metadata.csv").read_text().splitlines()
    lines[held_out[0]] = f"audio_{held_out[0]:06d}.wav|{'number ' * 40}"
    (data / "metadata.csv").write_text("\n".join(lines) + "\n")
    feedback = corrections(tmp_path / "feedback", count=2)
    (feedback / "digits.wav").write_bytes((feedback / "word0.wav").read_bytes())
    (feedback / "digits.txt").write_text("1984 1984 1984")
    # The voice lacks a digit, so that it reads numbers as words.
    for name, old, new in (("vocab.json", '"9"', '"ž"'), ("tokenizer_config.json", "{", '{"language": "eng",')):
        content = (served / name).read_text().replace('"language": null,', "")
        (served / name).write_text(content.replace(old, new, 1))
    settings = {"data_dir": data, "max_regression": 1, "validation_fraction": 0.2, "epochs": 3}
    (served / "trained_on.json").unlink()
    assert main(flags(served, feedback, tmp_path / "new", **settings)) in (0, 1)
    assert verdict(tmp_path / "new")["learnt"] == ["word0", "word1"]
    assert "The voice cannot read 1 correction, left out: digits: text-too-long" in caplog.text
    assert f"The voice cannot read 1 held-out clip, left out: audio_{held_out[0]:06d}.wav" in caplog.text
    rejected = (tmp_path / "new_work/corrections/rejected.csv").read_text()
    assert "\ndigits,text-too-long," in rejected
    # The voice is English, so that a recognizer listens to the texts that were held out, and can be read.
    understood = verdict(tmp_path / "new")["understood"]
    assert (understood is not None) == has_whisper()
    if understood:
        assert understood["texts"] == len(held_out) - 1
        assert 0.5 < understood["before"] <= 1  # the voice is noise
        assert f"character error rate {understood['before']:.1%} -> " in verdict(tmp_path / "new")["words"]


def test_replay_and_held_out_clips_are_those_of_the_voices_speakers(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "two"
    data = many_speakers(folder, {"ava": 8, "bo": 8})
    settings = {"max_updates": 1, "only_speakers": "ava", "validation_fraction": 0.3}
    assert main(["train_vits", *train_flags(folder, **settings)]) == 0
    served, feedback = folder / "final_model", corrections(tmp_path / "feedback", count=2)
    assert json.loads((served / "trained_on.json").read_text())["only_speakers"] == "ava"
    changes = {"data_dir": data, "max_regression": 1, "epochs": 2, "replay_fraction": 0.8}
    assert main(flags(served, feedback, tmp_path / "new", **changes)) in (0, 1)
    clips = json.loads((tmp_path / "new_work/runs/learnt/facts.json").read_text())["data"]
    assert clips["replayed"] == 8
    log = (tmp_path / "new_work/runs/learnt/train.log").read_text()
    assert "10 training clips" in log or "6 training clips" in log, log
    # A voice that does not store them:
    (served / "trained_on.json").unlink(missing_ok=True)
    (feedback / "word0.txt").write_text("number 9")
    capsys.readouterr()
    assert main(flags(served, feedback, tmp_path / "other", **changes)) == 2
    assert "The voice has one speaker" in capsys.readouterr().err
    assert main(flags(served, feedback, tmp_path / "other", only_speakers="ava", **changes)) in (0, 1)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A voice of three speakers with its data."""
    folder = tmp_path_factory.mktemp("several")
    many_speakers(folder, {"ana": 5, "mem": 4, "zin": 4})
    assert main(["train_vits", *train_flags(folder, max_updates=2)]) == 0
    return folder


def test_corrections_without_a_speaker_are_refused_before_training(
    several: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served, feedback = several / "final_model", corrections(tmp_path / "feedback", count=2)
    (feedback / "word0.speaker").write_text("mem\n")
    assert main(flags(served, feedback, tmp_path / "new", data_dir=several / "training")) == 2
    message = capsys.readouterr().err
    assert "no speaker is given for the corrections word1. Set --speaker" in message
    assert "Speakers: ana, mem, zin." in message
    (feedback / "word1.speaker").write_text("nobody\n")
    assert main(flags(served, feedback, tmp_path / "new", data_dir=several / "training")) == 2
    assert "has no speaker nobody. Its speakers: ana, mem, zin." in capsys.readouterr().err
    assert not (tmp_path / "new_work").exists()


def test_each_correction_trains_its_own_speaker(
    several: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = shutil.copytree(several / "final_model", tmp_path / "final_model")
    feedback = corrections(tmp_path / "feedback", count=3)
    (feedback / "word1.speaker").write_text("ana\n")
    prepared = []
    prepare = pipeline._prepare
    monkeypatch.setattr(pipeline, "_prepare", lambda *args: prepared.append(prepare(*args)) or prepared[-1])
    code = main(flags(served, feedback, tmp_path / "new", data_dir=several / "training", speaker="zin"))
    assert code in (0, 1)  # accepted or refused: it was trained
    assert list(prepared[0].rows.speaker) == ["zin", "ana", "zin"]
    facts = json.loads((tmp_path / "new_work/runs/learnt/facts.json").read_text())["data"]
    assert facts["replayed"] == 3

    # another speaker makes a correction new
    (feedback / "word1.speaker").write_text("mem\n")
    found = {one.name: one for one in replay_mix.find_corrections(feedback)}
    assert found["word1"].speaker == "mem"
    assert replay_mix.not_yet_learnt(list(found.values()), {**{n: c.sha256 for n, c in found.items()}, "word1": "x"})


def test_voice_whose_speakers_have_no_names_is_refused(
    several: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served = shutil.copytree(several / "final_model", tmp_path / "final_model")
    config = json.loads((served / "config.json").read_text())
    del config["speakers"]
    (served / "config.json").write_text(json.dumps(config))
    assert main(flags(served, corrections(tmp_path / "feedback"), tmp_path / "new", speaker="0")) == 2
    assert "has 3 speakers and names 0 of them" in capsys.readouterr().err
    assert main(["feedback_app", "--model_dir", str(served), "--feedback_dir", str(tmp_path / "page")]) == 2
    assert "has 3 speakers and names 0 of them" in capsys.readouterr().err
    assert not (tmp_path / "page").exists()


def test_speaker_of_a_voice_with_one_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    feedback = corrections(tmp_path / "feedback")
    assert main(flags(trained / "final_model", feedback, tmp_path / "new", speaker="ana")) == 2
    assert "has one speaker. Omit it." in capsys.readouterr().err
