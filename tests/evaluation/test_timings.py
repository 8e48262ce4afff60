"""Times of sentences, words and tokens: against the durations of transformers and the samples."""

import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.random_voice import RATE_HZ, TEXT, save_voice
from vits_trainer.cli.synthesize import run
from vits_trainer.config.voices import SynthesizeConfig
from vits_trainer.evaluation.synthesis import PAUSE_S, Speech, SynthesisOptions, Voice
from vits_trainer.evaluation.timings import MAX_CUE_CHARACTERS, SpeechTimings, Timing, piece_timings
from vits_trainer.text.tokenizer import build_tokenizer, encode
from vits_trainer.utils.errors import ConfigError

WITHOUT_NOISE = SynthesisOptions(noise_scale=0, noise_scale_duration=0)


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Voice:
    return Voice(str(save_voice(tmp_path_factory.mktemp("voice") / "single")))


@pytest.fixture(scope="module")
def speech(voice: Voice) -> Speech:
    return voice.speak(TEXT)


def test_timings_cover_the_speech_in_order(speech: Speech) -> None:
    timings = speech.timings
    assert [sentence.text for sentence in timings.sentences] == ["Silav dinya.", "Çawa yî?", "Ez baş im!"]
    assert [word.text for word in timings.words] == TEXT.split()
    assert "".join(token.text for token in timings.tokens) == "silav dinyaçawa yîez baş im"
    total_s = len(speech.samples) / RATE_HZ
    assert timings.sentences[-1].end_s == pytest.approx(total_s, abs=1e-6)
    for kind in (timings.sentences, timings.words, timings.tokens):
        assert all(one.start_s < one.end_s <= other.start_s + 1e-9 for one, other in pairwise(kind))
    for one, other in pairwise(timings.sentences):
        assert other.start_s - one.end_s == pytest.approx(PAUSE_S)


def test_token_times_are_the_durations_of_transformers(voice: Voice) -> None:
    text, rate = "silav dinya", 0.5
    spoken = voice.speak(text, noise_scale=0, noise_scale_duration=0, speaking_rate=rate)
    ids = torch.from_numpy(encode(voice.tokenizer, text))[None]
    model = voice.model
    model.noise_scale = model.noise_scale_duration = 0.0
    with torch.no_grad():
        mask = torch.ones_like(ids)[..., None].float()
        hidden = model.text_encoder(ids, mask).last_hidden_state.transpose(1, 2)
        log_durations = model.duration_predictor(hidden, mask.transpose(1, 2), None, reverse=True, noise_scale=0.0)
    frames = torch.ceil(torch.exp(log_durations) / rate)[0, 0].numpy()
    ends = np.cumsum(frames) * 256 / RATE_HZ
    assert [token.end_s for token in spoken.timings.tokens] == pytest.approx(ends[2::2].tolist())
    assert spoken.timings.tokens[0].start_s == 0


def test_numbers_are_timed_as_written() -> None:
    tokenizer = build_tokenizer(["two birds fly twenty one"], "en")
    ids = encode(tokenizer, "21 birds, fly")
    timings = piece_timings(tokenizer, "21 birds, fly", ids, np.full(len(ids), 0.1))
    assert [word.text for word in timings.words] == ["21", "birds,", "fly"]
    assert timings.words[0].end_s == pytest.approx(0.1 * (2 * len("twentyone") + 3), abs=0.31)
    assert timings.words[-1].end_s == pytest.approx(0.1 * len(ids))


def test_words_that_are_read_together_are_named_as_read() -> None:
    tokenizer = build_tokenizer(["of the world"], "en", phonemize=True)
    ids = encode(tokenizer, "of the world")
    timings = piece_timings(tokenizer, "of the world", ids, np.full(len(ids), 0.1))
    read = tokenizer.prepare_for_tokenization("of the world")[0]
    if len(read.split()) < 3:  # espeak-ng joins "of the"
        assert [word.text for word in timings.words] == read.split()
    else:
        assert [word.text for word in timings.words] == ["of", "the", "world"]


def test_json_and_subtitles_are_written(voice: Voice, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("x.json", "x.srt"):
        config = SynthesizeConfig(str(voice.name), TEXT, output=str(tmp_path / "x.wav"), timings=str(tmp_path / name))
        assert run(config) == 0
    content = json.loads((tmp_path / "x.json").read_text("utf-8"))
    assert content.keys() == {"sentences", "words", "tokens"}
    assert content["words"][0]["text"] == "Silav"
    cues = (tmp_path / "x.srt").read_text("utf-8").strip().split("\n\n")
    assert [cue.split("\n")[2] for cue in cues] == ["Silav dinya.", "Çawa yî?", "Ez baş im!"]
    assert [cue.split("\n")[0] for cue in cues] == ["1", "2", "3"]
    clock = r"\d\d:\d\d:\d\d,\d\d\d"
    assert all(re.fullmatch(f"{clock} --> {clock}", cue.split("\n")[1]) for cue in cues)
    seconds = cues[1].split("\n")[1][6:12].replace(",", ".")
    assert float(seconds) == pytest.approx(content["sentences"][1]["start_s"], abs=1e-3)


def test_long_sentences_become_several_subtitles(tmp_path: Path) -> None:
    words = tuple(Timing(f"word{number:02}", 0.5 * number, 0.5 * number + 0.4) for number in range(30))
    text = " ".join(word.text for word in words)
    SpeechTimings((Timing(text, 0.0, 15.0),), words, ()).save(tmp_path / "x.srt")
    lines = [cue.split("\n")[2] for cue in (tmp_path / "x.srt").read_text().strip().split("\n\n")]
    assert " ".join(lines) == text
    assert len(lines) == 3
    assert max(map(len, lines)) <= MAX_CUE_CHARACTERS
    assert "01:02:03,500" in _clock_of(3723.5, tmp_path)


def _clock_of(seconds: float, folder: Path) -> str:
    SpeechTimings((Timing("a", seconds, seconds + 1),)).save(folder / "clock.srt")
    return (folder / "clock.srt").read_text()


def test_other_suffixes_and_unwritable_files_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--timings x\.txt: must end with \.json or \.srt"):
        SynthesizeConfig(timings="x.txt")
    with pytest.raises(ConfigError, match=r"must end with \.json or \.srt"):
        SpeechTimings().save("x.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="choose another --timings"):
        SpeechTimings().save(tmp_path / "file/x.json")
