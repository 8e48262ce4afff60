"""The page of report --compare: its sentences, loudness and escapes; and the blind test in a real browser."""

import base64
import csv
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from tests.support.audio import encode, voice
from tests.support.html import EVIL, Elements
from tests.support.random_voice import RATE_HZ, save_voice
from tests.support.voices import many_speakers
from vits_trainer.cli.main import main
from vits_trainer.tracking.listening_page import SpokenSentence, Take, equally_loud, render_listening_page, short_names

VOICES = ("base", "tuned", EVIL)


def take(pitch_hz: float, loudness: float = 1.0) -> Take:
    return Take(loudness * voice(0.3, 16000, pitch_hz), 16000)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three voices, two sentences: six pairs."""
    sentences = [
        SpokenSentence(text, (take(100), take(150, 0.2), take(200)), take(120))
        for text in ("The first one.", f"=Second {EVIL}")
    ]
    path = tmp_path_factory.mktemp("page") / "listening.html"
    path.write_text(render_listening_page("base / tuned", VOICES, sentences), encoding="utf-8")
    return path


def sounds(html: str) -> dict[str, tuple[np.ndarray, int]]:
    """Samples and rate by the label of the player."""
    players = Elements(html).all("audio")
    return {
        one["aria-label"]: sf.read(io.BytesIO(base64.b64decode(one["src"].partition("base64,")[2]))) for one in players
    }


def test_page_is_self_contained_and_texts_are_escaped(page: Path) -> None:
    elements = Elements(page.read_text(encoding="utf-8"))
    references = [
        value for _, attributes in elements.found for name, value in attributes.items() if name in ("src", "href")
    ]
    assert len(references) == 8  # two sentences of three voices and a recording
    assert {value.partition(",")[0] for value in references} == {"data:audio/flac;base64"}
    assert len(elements.all("script")) == 2
    assert [name for _, attributes in elements.found for name in attributes if name.startswith("on")] == []
    assert elements.all("b") == []
    (policy,) = [one["content"] for one in elements.all("meta") if "http-equiv" in one]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert "connect-src" not in policy


def test_voices_are_equally_loud_and_not_clipped(page: Path) -> None:
    levels = [np.sqrt(np.square(samples).mean()) for samples, _ in sounds(page.read_text("utf-8")).values()]
    assert levels == pytest.approx([0.05] * 8, rel=0.01)
    peaky = np.zeros(1000, np.float32)
    peaky[0] = 0.3
    loud, spike, silent = equally_loud([take(100), Take(peaky, 16000), Take(np.zeros(9, np.float32), 16000)])
    assert np.abs(spike.samples).max() == pytest.approx(0.98)
    assert np.sqrt(np.square(loud.samples).mean()) == pytest.approx(np.sqrt(np.square(spike.samples).mean()), rel=1e-4)
    assert not silent.samples.any()


def run_folder(folder: Path, texts: list[str], pitch_hz: float) -> Path:
    """A run with two validations; the samples of the first would be silent."""
    for update, loudness in (("000009", 0), ("000010", 1)):
        samples = folder / f"samples/update-{update}"
        samples.mkdir(parents=True)
        (samples / "texts.json").write_text(json.dumps(texts))
        for n in range(len(texts)):
            (samples / f"{n}_speech.wav").write_bytes(encode(loudness * voice(0.2 + 0.1 * n, 16000, pitch_hz), 16000))
            (samples / f"{n}_recorded.wav").write_bytes(encode(voice(0.2, 16000), 16000))
    (folder / "config.yaml").write_text("{}")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    return [
        str(run_folder(tmp_path / "a", ["Zero.", "One.", "Two."], 100)),
        str(run_folder(tmp_path / "b", ["Two.", "One.", "Three."], 200)),
    ]


def test_runs_are_compared_by_the_sentences_that_they_have_in_common(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new/page.html"
    assert main(["report", "--compare", *runs, "--output", str(output)]) == 0
    assert "2 voices, 2 sentences" in capsys.readouterr().out
    found = sounds(output.read_text(encoding="utf-8"))
    assert list(found) == [f"{who}: {text}" for text in ("One.", "Two.") for who in ("a", "b", "recording")]
    assert all(samples.any() for samples, _ in found.values())
    # of the sentence, not of the number: One. is the second of both, Two. the third of a and the first of b
    assert [len(found[f"{run}: Two."][0]) for run in "ab"] == [int(0.4 * 16000), int(0.2 * 16000)]


def test_voices_speak_the_sentences_of_a_file_of_validation_clips_or_of_a_run(runs: list[str], tmp_path: Path) -> None:
    voices = [str(save_voice(tmp_path / "one")), str(save_voice(tmp_path / "two", "ann", "ben"))]
    (tmp_path / "lines.txt").write_text("Silav dinya.\n\nEz baş im!\n", encoding="utf-8")
    prepared = many_speakers(tmp_path, {"ben": 8})
    cases = {
        "lines": ([*voices, "--sentences", str(tmp_path / "lines.txt")], ["Silav dinya.", "Ez baş im!"], False),
        "clips": ([*voices, "--data_dir", str(prepared)], None, True),
        "run": ([voices[0], runs[0], "--max_sentences", "1"], ["Zero."], True),
    }
    for name, (words, texts, has_recording) in cases.items():
        output = tmp_path / f"{name}.html"
        assert main(["report", "--output", str(output), "--compare", *words]) == 0
        found = sounds(output.read_text(encoding="utf-8"))
        spoken = [label.partition(": ")[2] for label in found if label.startswith("one: ")]
        assert spoken == (texts or spoken)
        assert spoken
        assert any(label.startswith("recording") for label in found) == has_recording
        assert {rate for label, (_, rate) in found.items() if label.startswith("one: ")} == {RATE_HZ}


def test_names_on_the_page_are_the_shortest_that_differ() -> None:
    names = ["/home/ann/one/final_model", "two/final_model", "voices/joe/", "facebook/mms-tts-eng"]
    assert short_names(names) == ["one/final_model", "two/final_model", "joe", "mms-tts-eng"]
    assert short_names(["../final_model", "final_model"]) == ["../final_model", "final_model"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--compare", "{a}", "{c}"], "no validation sentence in common"),
        (["--compare", "{a}", "{empty}"], "contains no samples"),
        (["--compare", "{a}", "{b}", "--sentences", "x.txt"], "contains only its validation sentences"),
        (["--compare", "{a}", "{a}"], "contains a voice twice"),
        (["--compare", "{a}"], "give two or more"),
        (["{a}", "--compare", "{a}", "{b}"], "exclude each other"),
        (["--compare", "{a}/nowhere", "{a}"], "a/nowhere: "),
        (["--compare", "{voice}", "{voice}2", "--sentences", "{nothing}"], "Write one sentence per line"),
        (["--compare", "{a}", "{b}", "--output", "{empty}"], "as it is a folder"),
    ],
)
def test_invalid_calls_are_reported(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    names = {"a": runs[0], "b": runs[1], "c": run_folder(tmp_path / "c", ["Four."], 90), "empty": tmp_path / "empty"}
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/config.yaml").write_text("{}")
    names |= {"voice": save_voice(tmp_path / "voice"), "nothing": tmp_path / "nothing.txt"}
    shutil.copytree(tmp_path / "voice", tmp_path / "voice2")
    (tmp_path / "nothing.txt").write_text(" \n")
    assert main(["report", *(word.format(**names) for word in words)]) == 2
    assert expected in capsys.readouterr().err


@pytest.fixture
def tab(browser: Any, page: Path) -> Iterator[Any]:
    """The page on a phone without network; fails on errors of its script."""
    context = browser.new_context(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True, offline=True)
    opened = context.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    opened.goto(page.as_uri())
    yield opened
    assert errors == []
    context.close()


def listen_and_answer(tab: Any, choose: str) -> None:
    """Answers all pairs: plays both, and prefers the voice ``choose``, as what plays shows it."""
    playing = "[...document.querySelectorAll('audio')].find(a => !a.paused)?.id"
    while tab.locator("#trial").is_visible():
        assert tab.locator(".answer:enabled").count() == 0
        heard = {}
        for side in ("first", "second"):
            tab.tap(f"#play-{side}")
            tab.wait_for_function(playing)
            heard[side] = int(tab.evaluate(playing).rpartition("-")[2])
        chosen = [side for side, number in heard.items() if VOICES[number] == choose]
        tab.tap(f".answer[value={chosen[0] if chosen else 'none'}]")


def saved(tab: Any, button: str) -> str:
    with tab.expect_download() as download:
        tab.tap(f".{button}")
    return Path(download.value.path()).read_text(encoding="utf-8")


def test_blind_test_plays_both_sides_counts_and_saves(tab: Any) -> None:
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "a phone would have to scroll sideways"
    assert "tuned" not in tab.locator("#blind").inner_text()
    tab.fill("#listener", '=Ann "A"')
    listen_and_answer(tab, "tuned")
    assert "All 6 pairs are done." in tab.locator("#blind").inner_text()
    result = json.loads(saved(tab, "json"))
    assert [(one["prefers_a"], one["prefers_b"], one["no_difference"]) for one in result["tally"]] == [
        (0, 2, 0),  # base, tuned
        (0, 0, 2),  # base, EVIL
        (2, 0, 0),  # tuned, EVIL
    ]
    assert [one["chance"] for one in result["tally"]] == [0.5, 1, 0.5]
    assert result["voices"] == list(VOICES)
    assert {one["preferred"] for one in result["answers"]} == {"tuned", None}
    assert {frozenset((one["first"], one["second"])) for one in result["answers"]} == {
        frozenset(pair) for pair in (VOICES[:2], VOICES[1:], VOICES[::2])
    }
    rows = list(csv.DictReader(io.StringIO(saved(tab, "csv"))))
    assert [row["preferred"] for row in rows] == [one["preferred"] or "" for one in result["answers"]]
    assert {row["listener"] for row in rows} == {"'=Ann \"A\""}
    assert {row["text"] for row in rows} == {"The first one.", f"'=Second {EVIL}"}


def test_progress_survives_a_reload_and_an_answer_can_be_taken_back(tab: Any) -> None:
    for side in ("first", "second"):
        tab.tap(f"#play-{side}")
    tab.tap(".answer[value=first]")
    text = tab.locator("#text").inner_text()
    tab.reload()
    assert tab.locator("#count").inner_text() == "Pair 2 of 6"
    assert tab.locator("#text").inner_text() == text
    tab.tap("#back")
    assert tab.locator("#count").inner_text() == "Pair 1 of 6"
    assert json.loads(saved(tab, "json"))["answers"] == []


def test_order_and_sides_are_random(browser: Any, page: Path) -> None:
    orders = set()
    for _ in range(8):
        opened = browser.new_page()
        opened.goto(page.as_uri())
        orders.add(json.dumps(opened.evaluate("state.trials")))
        opened.close()
    assert len(orders) == 8  # of 6! * 2 ** 6 = 46,080
    sides = [re.findall(r'"first": (\d), "second": (\d)', order) for order in orders]
    assert any(first > second for order in sides for first, second in order)


def test_sign_test_is_exact(tab: Any) -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    for wins, losses in ((0, 0), (1, 0), (8, 2), (3, 12), (30, 30)):
        expected = scipy_stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1
        assert tab.evaluate(f"chance({wins}, {losses})") == pytest.approx(expected)
