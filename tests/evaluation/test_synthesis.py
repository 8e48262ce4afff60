"""Synthesis with a voice of random weights: its noise suffices to compare samples."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, VitsModel, VitsTokenizer

from tests.support.random_voice import RATE_HZ, TEXT, save_voice
from vits_trainer.evaluation.synthesis import (
    FADE_S,
    PAUSE_S,
    SynthesisOptions,
    Voice,
    join,
    split_sentences,
    write_speech,
)
from vits_trainer.utils.errors import ConfigError, DataError, ModelError

PAUSE, FADE = round(PAUSE_S * RATE_HZ), round(FADE_S * RATE_HZ)
WITHOUT_NOISE = SynthesisOptions(noise_scale=0, noise_scale_duration=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_voice(tmp_path_factory.mktemp("voice") / "single")


@pytest.fixture(scope="module")
def voice(folder: Path) -> Voice:
    return Voice(str(folder))


@pytest.fixture(scope="module")
def three_speakers(tmp_path_factory: pytest.TempPathFactory) -> Voice:
    return Voice(str(save_voice(tmp_path_factory.mktemp("voice") / "three", "Azad", "Berfin", "Cîhan")))


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Ez hatim. Tu çûyî! Kî ma? Na… Belê", ["Ez hatim.", "Tu çûyî!", "Kî ma?", "Na…", "Belê"]),
        ("ئەمە چییە؟ باشە۔ بەڵێ", ["ئەمە چییە؟", "باشە۔", "بەڵێ"]),
        ("سلام؟مرحبا", ["سلام؟", "مرحبا"]),
        ("你好。我很好！真的吗？是", ["你好。", "我很好！", "真的吗？", "是"]),
        ("「行こう！」と言った。", ["「行こう！」", "と言った。"]),
        ("नमस्ते। ठीक है॥", ["नमस्ते।", "ठीक है॥"]),
        ("ሰላም። እንዴት ነህ፧", ["ሰላም።", "እንዴት ነህ፧"]),
        ("yek\ndu\r\n\r\n  sê \u2028çar", ["yek", "du", "sê", "çar"]),
        ("Got: \"Na!\" (Belê.) Baş", ["Got: \"Na!\"", "(Belê.)", "Baş"]),
        ("Çi?! Na... Belê", ["Çi?!", "Na...", "Belê"]),
        ("3.5 û 1.000.000 kes", ["3.5 û 1.000.000 kes"]),
        ("J. R. R. Tolkien û Ç. Emîn. Baş", ["J. R. R. Tolkien û Ç. Emîn.", "Baş"]),
        ("www.example.com e", ["www.example.com e"]),
        ("Sala 2020. Paşê", ["Sala 2020.", "Paşê"]),
        (" \n\t ", []),
        ("", []),
    ],
)  # fmt: skip
def test_text_is_split_at_sentence_ends(text: str, pieces: list[str]) -> None:
    assert split_sentences(text) == pieces


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("one two three, four five six", ["one two three,", "four five six"]),  # at the comma, although more would fit
        ("a, bcde fghijk lmnopq", ["a, bcde fghijk", "lmnopq"]),  # not at that comma, which is too early
        ("abcdefghijklmnop qrst", ["abcdefghijklmnop", "qrst"]),
        ("abcdefghijklmnopqrstuvw", ["abcdefghijklmnopqrst", "uvw"]),
        ("abcdefghijklmnopqrst uvw", ["abcdefghijklmnopqrst", "uvw"]),  # fits exactly
        ("人" * 12 + "，" + "口" * 9, ["人" * 12 + "，", "口" * 9]),
        ("ab 12345678901,5 cdefg", ["ab 12345678901,5", "cdefg"]),
        ("กี" * 9 + "กกี" + "ก", ["กี" * 9 + "ก", "กี" + "ก"]),  # never between a letter and its vowel sign
    ],
)
def test_long_sentences_are_split_further(text: str, pieces: list[str]) -> None:
    assert split_sentences(text, 20) == pieces


@pytest.mark.parametrize("limit", [1, 7, 50])
def test_no_piece_is_too_long_and_nothing_is_lost(limit: int) -> None:
    words = ["ez", "te", "dibînim,", "x" * 60, "û", "diçim.", "人。口", "3.5;", "\n"]
    text = " ".join(np.random.default_rng(0).choice(words, 400))
    pieces = split_sentences(text, limit)
    assert max(map(len, pieces)) <= limit
    assert all(piece and piece == piece.strip() for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())


def test_same_seed_gives_the_same_speech_and_another_seed_does_not(voice: Voice) -> None:
    first, second = voice.synthesize(TEXT, SynthesisOptions(seed=7)), voice.synthesize(TEXT, SynthesisOptions(seed=7))
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(voice.synthesize(TEXT, SynthesisOptions(seed=8)), first)


def test_without_noise_the_seed_does_not_matter(voice: Voice) -> None:
    first, second = (voice.synthesize(TEXT, replace(WITHOUT_NOISE, seed=seed)) for seed in (7, 8))
    np.testing.assert_array_equal(first, second)


def test_piece_does_not_depend_on_earlier_pieces(voice: Voice) -> None:
    short = list(voice.synthesize_pieces("Silav. Ez baş im."))
    long = list(voice.synthesize_pieces("Silav dinya çawa yî ez baş im. Ez baş im."))
    assert len(short[0]) != len(long[0])
    np.testing.assert_array_equal(short[1], long[1])


def test_pieces_of_the_same_text_have_different_noise(voice: Voice) -> None:
    first, second = voice.synthesize_pieces("Silav dinya. Silav dinya.")
    assert not np.array_equal(first, second)


def test_samples_between_the_fades_equal_those_of_transformers(voice: Voice, folder: Path) -> None:
    model, tokenizer = VitsModel.from_pretrained(folder), VitsTokenizer.from_pretrained(folder)
    model.noise_scale = model.noise_scale_duration = 0
    with torch.no_grad():
        expected = model(**tokenizer("Silav dinya.", return_tensors="pt"), speaking_rate=1.3).waveform[0].numpy()
    spoken = voice.synthesize("Silav dinya.", replace(WITHOUT_NOISE, speaking_rate=1.3))
    assert len(spoken) == len(expected)
    np.testing.assert_allclose(spoken[FADE:-FADE], expected[FADE:-FADE], atol=1e-6)
    assert np.abs(expected).max() > 0.1


def test_noise_scales_default_to_the_voices_and_are_restored(voice: Voice) -> None:
    default = voice.synthesize(TEXT)
    config = voice.model.config
    explicit = SynthesisOptions(noise_scale=config.noise_scale, noise_scale_duration=config.noise_scale_duration)
    assert not np.array_equal(voice.synthesize(TEXT, SynthesisOptions(noise_scale=0)), default)
    assert not np.array_equal(voice.synthesize(TEXT, SynthesisOptions(noise_scale_duration=0)), default)
    np.testing.assert_array_equal(voice.synthesize(TEXT), default)
    np.testing.assert_array_equal(voice.synthesize(TEXT, explicit), default)


def test_twice_the_speaking_rate_halves_the_duration(voice: Voice) -> None:
    # Durations are rounded up to whole frames: slow speech gives the most accurate ratio.
    options = [replace(WITHOUT_NOISE, speaking_rate=rate) for rate in (0.1, 0.2)]
    slow, fast = (len(voice.synthesize("Silav dinya", option)) for option in options)
    assert fast / slow == pytest.approx(0.5, rel=0.05)


def test_long_text_is_its_pieces_joined_with_pauses(voice: Voice) -> None:
    pieces = [voice.synthesize(piece, WITHOUT_NOISE) for piece in ("Silav dinya.", "Çawa yî?", "Ez baş im!")]
    pause = np.zeros(PAUSE, dtype=np.float32)
    expected = np.concatenate([pieces[0], pause, pieces[1], pause, pieces[2]])
    np.testing.assert_array_equal(voice.synthesize(TEXT, WITHOUT_NOISE), expected)


def test_pieces_are_joined_without_clicks(voice: Voice) -> None:
    pieces = list(voice.synthesize_pieces(TEXT))
    inside = max(float(np.abs(np.diff(piece)).max()) for piece in pieces)
    spoken = np.pad(voice.synthesize(TEXT), 3)  # silence before and after, as from a player
    edges = 3 + np.cumsum([0, *(length for piece in pieces for length in (len(piece), PAUSE))])[:-1]
    jumps = np.abs(np.diff(spoken))
    assert max(jumps[edge - 3 : edge + 2].max() for edge in edges) < 0.01 * inside
    assert max(abs(piece[at]) for piece in pieces for at in (0, -1)) > 0.02 * inside  # a click, without the fade


def test_fade_is_a_raised_cosine() -> None:
    joined = join([np.ones(400, np.float32), np.ones(400, np.float32)], RATE_HZ)
    assert len(joined) == 800 + PAUSE
    assert joined[FADE // 2] == pytest.approx(0.5)
    assert joined[FADE // 4] == pytest.approx((1 - 2**-0.5) / 2)
    np.testing.assert_array_equal(joined, joined[::-1])
    np.testing.assert_array_equal(joined[FADE : 400 - FADE], 1)
    np.testing.assert_array_equal(joined[400 : 400 + PAUSE], 0)
    assert np.abs(np.diff(joined)).max() < 0.5 * np.pi / FADE


@pytest.mark.parametrize("length", [0, 1, 2, 50])
def test_pieces_shorter_than_their_fades_are_kept(length: int) -> None:
    assert len(join([np.ones(length, np.float32)], RATE_HZ)) == length


def test_random_state_of_the_caller_is_unchanged(voice: Voice) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    pieces = voice.synthesize_pieces(TEXT)
    next(pieces)
    assert torch.equal(torch.rand(4), expected)


def test_unknown_pieces_are_skipped_and_counted(voice: Voice, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "vits_trainer"):
        spoken = voice.synthesize("Silav dinya. Привет! *** Ez 3 baş im.", WITHOUT_NOISE)
    (record,) = caplog.records
    assert "“п”, “р”, “и”, “в”, “е”, “т”, “3”: skipped, and with them 1 of 3 sentences." in record.getMessage()
    np.testing.assert_array_equal(spoken, voice.synthesize("Silav dinya. Ez  baş im.", WITHOUT_NOISE))


def test_known_text_causes_no_warning(voice: Voice, caplog: pytest.LogCaptureFixture) -> None:
    voice.synthesize("SILAV, dinya — «baş»!")
    assert caplog.records == []


def test_text_without_known_characters_is_rejected_with_their_list(voice: Voice) -> None:
    with pytest.raises(DataError, match="“你”, “好”"):
        voice.synthesize("你好。")


@pytest.mark.parametrize("text", ["", " \n", "?! ... —"])
def test_text_without_letters_or_digits_is_rejected(voice: Voice, text: str) -> None:
    with pytest.raises(DataError, match="nothing to say"):
        voice.synthesize(text)


def test_all_unknown_tokens_are_rejected(folder: Path) -> None:
    voice = Voice(str(folder))
    voice.tokenizer.normalize = False  # then unknown characters become <unk>
    with pytest.raises(DataError, match="“你”, “好”"):
        voice.synthesize("你好。")
    assert len(voice.synthesize("a")) > 0


def test_speakers_are_selected_by_name_or_id(three_speakers: Voice) -> None:
    berfin = three_speakers.synthesize(TEXT, SynthesisOptions(speaker="Berfin"))
    np.testing.assert_array_equal(berfin, three_speakers.synthesize(TEXT, SynthesisOptions(speaker="1")))
    azad = three_speakers.synthesize(TEXT, SynthesisOptions(speaker="Azad"))
    np.testing.assert_array_equal(three_speakers.synthesize(TEXT), azad)
    assert not np.array_equal(berfin, three_speakers.synthesize(TEXT))


@pytest.mark.parametrize(
    ("speaker", "message"),
    [("Berfîn", "did you mean Berfin"), ("xyz", "Azad, Berfin, Cîhan"), ("3", "from 0 to 2"), ("-1", "Azad, Berfin")],
)
def test_unknown_speaker_is_rejected_with_a_suggestion(three_speakers: Voice, speaker: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        three_speakers.synthesize(TEXT, SynthesisOptions(speaker=speaker))


def test_speakers_without_names_are_selected_by_id(three_speakers: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(three_speakers.model.config, "speakers")
    assert three_speakers.speaker_id("2") == 2
    with pytest.raises(ConfigError, match="from 0 to 2"):
        three_speakers.speaker_id("Azad")


def test_speaker_of_a_single_speaker_voice_is_rejected(voice: Voice) -> None:
    with pytest.raises(ConfigError, match="single speaker"):
        voice.synthesize(TEXT, SynthesisOptions(speaker="0"))


def test_missing_voice_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        Voice(str(tmp_path / "nowhere"))


def test_other_models_are_rejected(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="bert"):
        Voice(str(tmp_path))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda weights: weights.pop("decoder.conv_post.weight"), "do not match.*decoder.conv_post.weight"),
        (lambda weights: weights["flow.flows.0.conv_pre.bias"].fill_(torch.nan), "weights flow.flows.0.conv_pre"),
    ],
)
def test_damaged_weights_are_rejected(folder: Path, tmp_path: Path, damage, message: str) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    damage(weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=message):
        Voice(str(tmp_path))


def test_minutes_of_ogg_can_be_written(tmp_path: Path) -> None:
    # A single write of more than about two million samples crashes libsndfile.
    write_speech(tmp_path / "x.ogg", np.zeros(2_500_000, np.float32), RATE_HZ)
    assert sf.info(tmp_path / "x.ogg").frames == 2_500_000


def test_unsupported_rate_of_a_format_is_rejected_with_alternatives(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"20000 Hz: use .wav or .flac"):
        write_speech(tmp_path / "x.mp3", np.zeros(4000, np.float32), 20000)
    assert list(tmp_path.iterdir()) == []


def test_white_space_is_replaced_by_spaces():
    assert split_sentences("10\u00a0Uhr\tund so. Ja.") == ["10 Uhr und so.", "Ja."]


def test_a_speaker_may_be_given_by_the_beginning_of_one_name(three_speakers: Voice) -> None:
    assert three_speakers.full_speaker_name("Ber") == "Berfin"
    expected = three_speakers.synthesize(TEXT, SynthesisOptions(speaker="Berfin"))
    np.testing.assert_array_equal(three_speakers.speak(TEXT, speaker="Ber").samples, expected)
    assert [three_speakers.full_speaker_name(name) for name in ("Azad", "2", "x", None)] == ["Azad", "2", "x", None]
    with pytest.raises(ConfigError):  # an evaluation must not take another speaker than that of the clip
        three_speakers.synthesize(TEXT, SynthesisOptions(speaker="Ber"))


def test_several_speakers_with_this_beginning_are_listed_in_short(
    three_speakers: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["ab" * 64, "ac" * 64, "ad"]
    monkeypatch.setattr(three_speakers.model.config, "speakers", names)
    assert three_speakers.full_speaker_name("ab") == names[0]
    with pytest.raises(ConfigError, match="3 speakers begin with a: abababab…, acacacac…, ad"):
        three_speakers.full_speaker_name("a")
    with pytest.raises(ConfigError) as refused:
        three_speakers.speaker_id("ee" * 64)
    assert len(str(refused.value)) < 300
