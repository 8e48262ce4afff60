"""The page of check_data: what it contains, and marking and saving in a real browser."""

import base64
import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from tests.support.audio import voice
from tests.tracking.test_listening_page import EVIL, Elements
from vits_trainer.data.audio import to_pcm16
from vits_trainer.data.preparation.drop_list import read_drop_list
from vits_trainer.tracking.check_page import ShownClip, render_check_page

SOURCES = ("c0", f"'={EVIL}, a.wav", "#2", 'with "quotes".wav')


def shown(number: int) -> ShownClip:
    return ShownClip(
        name=f"audio_{number:06d}.wav",
        source=SOURCES[number],
        speaker="spk_0001",
        text=f"Text {number} {EVIL}",
        transcript="heard this" if number == 1 else "",
        reasons=["noise 10 dB below the speech", "another"],
        signals=["snr", "rate"],
        pcm=None if number == 3 else to_pcm16(voice(0.4, 16000, 100 + 30 * number)),
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "check_data.html"
    html = render_check_page(f"set {EVIL}", [shown(n) for n in range(4)], {"snr": 4, "rate": 4}, 900, 60, 16000)
    path.write_text(html, encoding="utf-8")
    return path


def test_the_page_is_self_contained_and_escaped_and_its_sound_is_that_of_the_clips(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    elements = Elements(html)
    references = [
        value for _, attributes in elements.found for name, value in attributes.items() if name in ("src", "href")
    ]
    assert {value.partition(",")[0] for value in references} == {"data:audio/flac;base64"}
    assert len(references) == 3  # one clip cannot be read
    assert len(elements.all("script")) == 2
    assert elements.all("b") == []
    assert [name for _, attributes in elements.found for name in attributes if name.startswith("on")] == []
    (policy,) = [one["content"] for one in elements.all("meta") if "http-equiv" in one]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    for number, uri in enumerate(references):
        samples, rate_hz = sf.read(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])), dtype="int16")
        assert rate_hz == 16000
        np.testing.assert_array_equal(samples, shown(number).pcm)
    assert "60 of 900 clips are suspicious; the worst 4 are below" in html


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


def saved(tab: Any, path: Path) -> Path:
    with tab.expect_download() as download:
        tab.tap("#save")
    assert download.value.suggested_filename == "drop.csv"
    download.value.save_as(path)
    return path


def test_marked_clips_are_saved_as_a_list_that_prepare_data_takes(tab: Any, tmp_path: Path) -> None:
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "a phone would have to scroll sideways"
    assert tab.locator("#save").is_disabled()
    tab.locator("article label").nth(1).tap()
    tab.locator("article label").nth(3).tap()
    assert tab.locator("#save").inner_text() == "Save drop.csv (2)"
    path = saved(tab, tmp_path / "drop.csv")
    assert list(csv.reader(path.open(encoding="utf-8", newline=""))) == [
        ["clip", "source", "signals"],
        ["audio_000001.wav", SOURCES[1], "snr; rate"],
        ["audio_000003.wav", SOURCES[3], "snr; rate"],
    ]
    assert read_drop_list(str(path)).names == {SOURCES[1], SOURCES[3]}
    tab.tap("#all")
    drop = read_drop_list(str(saved(tab, tmp_path / "all.csv")))
    assert (drop.names, drop.indices) == ({*SOURCES} - {"#2"}, {2})
    tab.tap("#none")
    assert tab.locator("#save").is_disabled()


def test_marks_survive_a_reload_and_one_clip_plays_at_a_time(tab: Any) -> None:
    tab.locator("article label").nth(2).tap()
    tab.reload()
    assert tab.locator("input.drop").nth(2).is_checked()
    assert tab.locator("article.marked").count() == 1
    for number in (0, 1):
        tab.evaluate(f"document.querySelectorAll('audio')[{number}].play()")
    assert tab.evaluate("[...document.querySelectorAll('audio')].map(a => a.paused)") == [True, False, True]
