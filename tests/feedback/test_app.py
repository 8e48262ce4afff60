"""``feedback_app``: the page in a browser, password and headers over HTTP, and the event handlers."""

import contextlib
import http.cookiejar
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import wave
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.support.audio import encode, voice
from tests.support.fork_server import python
from tests.support.limits import HANG_S
from tests.support.voices import many_speakers, prepared_folder, train_flags
from vits_trainer.cli.main import main
from vits_trainer.config.feedback import FeedbackAppConfig
from vits_trainer.feedback.corrections import Corrections, Limits
from vits_trainer.feedback.served_voice import ServedVoice
from vits_trainer.feedback.training_process import TrainingProcess
from vits_trainer.utils.errors import ConfigError
from vits_trainer.utils.installation import install_command

ROOT = Path(__file__).parents[2]
CHROMIUM = Path("/usr/bin/chromium")
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-sync",
    "--disable-component-update",
    "--use-fake-ui-for-media-stream",  # a microphone that records beeps
    "--use-fake-device-for-media-stream",
]
HAS_GRADIO = importlib.util.find_spec("gradio") is not None
HAS_BROWSER = CHROMIUM.exists() and importlib.util.find_spec("playwright") is not None
needs_gradio = pytest.mark.skipif(not HAS_GRADIO, reason="gradio is not installed: pip install '.[app]'")
needs_browser = pytest.mark.skipif(not HAS_BROWSER, reason=f"{CHROMIUM} or the Python package playwright is absent")
SESAME = "open sesame"
TEXT = "number 3 speaks"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    prepared_folder(folder)
    assert main(["train_vits", *train_flags(folder, max_updates=2)]) == 0
    return folder / "final_model"


@pytest.fixture
def model(served: Path, tmp_path: Path) -> Path:
    return shutil.copytree(served, tmp_path / "final_model")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A voice of three speakers with its data."""
    folder = tmp_path_factory.mktemp("several")
    many_speakers(folder, {"ana": 5, "mem": 4, "zin": 4})
    assert main(["train_vits", *train_flags(folder, max_updates=2)]) == 0
    return folder


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def app(folder: Path, model: Path, password: str | None = None, **changes: object) -> Iterator[str]:
    """Runs the program on a free port and yields its address; checks the exit code after SIGTERM."""
    settings = {
        "feedback_dir": folder / "feedback",
        "model_dir": model,
        "output_dir": folder / "feedback_model",
        "port": free_port(),
        **changes,
    }
    flags = [flag for name, value in settings.items() for flag in (f"--{name}", str(value))]
    environment = os.environ | ({"VITS_TRAINER_PASSWORD": password} if password else {})
    log = folder / "app.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [python(), "-m", "vits_trainer", "feedback_app", *flags],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        for _ in range(1200):
            if b"Serving at" in log.read_bytes() or process.poll() is not None:
                break
            time.sleep(0.1)
        assert process.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{settings['port']}/"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()


# Page in a browser


@pytest.fixture
def page() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=CHROMIUM_FLAGS)
        opened = browser.new_page(viewport={"width": 1280, "height": 900})
        opened.requests = []
        opened.errors = []
        opened.on("request", lambda request: opened.requests.append(request.url))
        opened.on("pageerror", lambda error: opened.errors.append(str(error)))
        opened.on("console", lambda message: opened.errors.append(message.text) if message.type == "error" else None)
        yield opened
        browser.close()


def tab_to(page: Any, selector: str) -> None:
    for _ in range(40):
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{selector} cannot be reached by the Tab key")


def upload(page: Any, content: bytes, name: str = "../../it.wav") -> None:
    file = {"name": name, "mimeType": "audio/wav", "buffer": content}
    page.set_input_files("#recording input[type=file]", files=[file])


def seconds_of(page: Any, selector: str) -> float:
    return page.evaluate(
        """async selector => {
             const audio = document.querySelector(selector);
             audio.preload = 'metadata';
             if (!audio.duration) await new Promise((done, failed) => {
               audio.onloadedmetadata = done; audio.onerror = () => failed(audio.error.message); audio.load(); });
             return audio.duration;
           }""",
        selector,
    )


def overflowing(page: Any) -> list[str]:
    """Returns elements beyond the right edge, including those that are clipped instead of scrolled."""
    return page.evaluate(
        """() => [...document.querySelectorAll('body *')]
             .filter(e => e.offsetParent && e.getBoundingClientRect().right > innerWidth + 1)
             .map(e => e.outerHTML.slice(0, 120))"""
    )


def unlabelled(page: Any) -> list[str]:
    """Returns controls without a label for screen readers."""
    return page.evaluate(
        """() => [...document.querySelectorAll('button, select, textarea, input, audio[controls], progress')]
             .filter(e => e.offsetParent && !e.getAttribute('aria-label') && !e.innerText?.trim()
                          && !e.labels?.[0]?.innerText.trim())
             .map(e => e.outerHTML.slice(0, 120))"""
    )


@needs_gradio
@needs_browser
def test_full_workflow_in_a_browser(model: Path, tmp_path: Path, page: Any) -> None:
    correction = voice(1.5, 16000, 200)
    feedback = tmp_path / "feedback"
    limits = {"max_clip_s": 3, "max_upload_mb": 0.5, "max_corrections_per_hour": 2}
    limits |= {"epochs": 20, "learning_rate": 5e-3}  # the voice is random noise
    with app(tmp_path, model, **limits) as address:
        # Keyboard only: type, generate, mark as wrong, and reach the upload.
        page.goto(address)
        page.wait_for_function("document.activeElement.matches('#sentence textarea')")
        page.keyboard.type(TEXT)
        page.keyboard.press("Enter")
        page.wait_for_selector("#rendering audio", timeout=HANG_S * 1000)
        assert seconds_of(page, "#rendering audio") > 0.05
        assert page.evaluate("document.querySelector('#rendering img').naturalWidth") > 500
        tab_to(page, "#wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector(f"#correct .prompt >> text={TEXT}")
        tab_to(page, "#recording [aria-label='Upload file']")
        page.keyboard.press("Enter")
        page.wait_for_selector("#recording input[type=file]", state="attached")
        assert unlabelled(page) == []

        upload(page, encode(voice(3.5, 16000), 16000))
        page.wait_for_selector("#correct-notice >> text=The recording is too long (3.5 s, at most 3 s).")
        page.click("#save")
        page.click("#recording [aria-label='Clear']")
        upload(page, encode(correction, 16000))
        page.wait_for_selector("#correct figure img")
        assert seconds_of(page, "#correct audio[aria-label='Your recording']") == pytest.approx(1.5)
        generated_s = seconds_of(page, "#rendering audio")
        assert seconds_of(page, "#correct audio[aria-label='The voice']") == pytest.approx(generated_s)
        assert not list(feedback.glob("*.wav"))
        tab_to(page, "#save")
        page.keyboard.press("Enter")
        page.wait_for_selector("#playback-notice >> text=Saved: 1.5 s.")

        (wav,), (txt,) = feedback.glob("*.wav"), feedback.glob("*.txt")
        assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{8}", wav.stem)
        assert (txt.stem, txt.read_bytes()) == (wav.stem, b"number 3 speaks\n")
        with wave.open(str(wav)) as written:
            assert written.getparams()[:4] == (1, 2, 16000, 24000)
            samples = np.frombuffer(written.readframes(24000), dtype="<i2")
        assert np.abs(samples / 32768 - correction).max() < 1e-4
        (mark,) = map(json.loads, (feedback / "marks.jsonl").read_text().splitlines())
        assert (mark["text"], mark["mark"], mark["seed"], len(mark["model"])) == (TEXT, "wrong", 1234, 64)
        assert page.inner_text("ul.saved .text") == TEXT
        assert seconds_of(page, "ul.saved audio") == pytest.approx(1.5)

        assert [line.partition(".")[0] for line in page.locator("h2").all_inner_texts()][:3] == ["1", "2", "3"]
        page.click("#wrong")
        page.click("#recording [aria-label='Record audio']")
        page.click("#recording .record-button")
        page.wait_for_timeout(1200)
        page.click("#recording .stop-button:visible")
        page.wait_for_selector("#correct figure img")
        page.click("#save")
        page.wait_for_selector("ul.saved li:nth-child(2)")
        (recorded,) = set(feedback.glob("*.wav")) - {wav}
        with wave.open(str(recorded)) as written:
            assert written.getparams()[:3] == (1, 2, 16000)
            assert 0.5 < written.getnframes() / 16000 < 3

        page.click("#wrong")
        page.click("#recording [aria-label='Upload file']")
        upload(page, encode(correction, 16000))
        page.wait_for_selector("#correct figure img")
        page.click("#save")
        page.wait_for_selector("#correct-notice >> text=Too many corrections")
        assert len(list(feedback.glob("*.wav"))) == 2

        page.click("#learn")
        page.wait_for_selector("#learning progress[max]", timeout=HANG_S * 1000)
        page.wait_for_selector("#learning .notice.good >> text=Training finished", timeout=HANG_S * 1000)
        assert "voice version 1" in page.inner_text("#learning .notice")
        assert "trained on 2 corrections" in page.inner_text("#learning .notice")
        corrections = json.loads((model / "learnt.json").read_text())["corrections"]
        assert corrections.keys() == {wav.stem, recorded.stem}
        assert (tmp_path / "final_model_versions/0/model.safetensors").is_file()
        page.click("#learn")
        page.wait_for_selector("#learning .notice.good >> text=There are no new corrections", timeout=HANG_S * 1000)

        page.set_viewport_size({"width": 390, "height": 844})
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert overflowing(page) == []
        assert unlabelled(page) == []

        page.once("dialog", lambda dialog: dialog.dismiss())
        page.click(f"ul.saved [data-name='{wav.stem}']")
        assert wav.exists()
        for name, remaining in ((wav.stem, "1 correction saved."), (recorded.stem, "0 corrections saved.")):
            page.once("dialog", lambda dialog: dialog.accept())
            page.click(f"ul.saved [data-name='{name}']")
            page.wait_for_selector(f"text={remaining}")
        assert {path.name for path in feedback.iterdir()} == {"marks.jsonl", ".in_use"}
        assert page.errors == []

        too_large = encode(voice(20.0, 16000), 16000)  # Gradio rejects it before our check
        page.click("#recording [aria-label='Clear']")
        upload(page, too_large)
        page.wait_for_selector("text=/(exceed|too large)/i")
        assert not list(feedback.glob("*.wav"))
    hosts = {urllib.parse.urlsplit(url).netloc for url in page.requests if not url.startswith(("data:", "blob:"))}
    assert hosts == {urllib.parse.urlsplit(address).netloc}


@pytest.mark.run
@needs_gradio
@needs_browser
@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
def test_voice_of_several_speakers_is_corrected_as_the_one_that_is_selected(
    several: Path, tmp_path: Path, page: Any, width: int, theme: str
) -> None:
    model = shutil.copytree(several / "final_model", tmp_path / "final_model")
    page.emulate_media(color_scheme=theme)
    page.set_viewport_size({"width": width, "height": 900})
    settings = {"data_dir": several / "training", "learning_rate": 2e-3, "epochs": 1}
    with app(tmp_path, model, **settings) as address:
        page.goto(address)
        page.click("#suggest")
        page.wait_for_function("document.querySelector('#sentence textarea').value.includes('speaks')")
        page.click("#speaker input")
        page.click("ul[role=listbox] >> text=mem")
        page.fill("#rate input[type=number]", "0.5")
        page.keyboard.press("Tab")
        page.click("#hear")
        page.wait_for_selector("#rendering audio")
        slow_s = seconds_of(page, "#rendering audio")
        page.fill("#rate input[type=number]", "2")
        page.keyboard.press("Tab")
        page.click("#hear")
        page.wait_for_selector("#rendering >> text=take 2")
        assert seconds_of(page, "#rendering audio") < 0.5 * slow_s
        page.click("#wrong")
        page.wait_for_selector("#judged >> text=1 sentence judged: 0 correct, 1 wrong")
        page.click("#recording [aria-label='Upload file']")
        upload(page, encode(voice(1.2, 16000, 180), 16000))
        page.wait_for_selector("#correct figure img")
        page.click("#save")
        page.wait_for_selector("ul.saved li >> text=mem")
        (speaker,) = (tmp_path / "feedback").glob("*.speaker")
        assert speaker.read_text() == "mem\n"
        (mark,) = map(json.loads, (tmp_path / "feedback/marks.jsonl").read_text().splitlines())
        assert mark["speaker"] == "mem"
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert overflowing(page) == []
        assert unlabelled(page) == []
        page.click("#learn")
        page.wait_for_selector("#learning .notice", timeout=HANG_S * 1000)
        assert "could not start" not in page.inner_text("#learning .notice")
        (row,) = (tmp_path / "feedback_model_work/corrections").glob("metadata.csv")
        assert row.read_text().count("\n") == 1
        page.once("dialog", lambda dialog: dialog.accept())
        page.click(f"ul.saved [data-name='{speaker.stem}']")
        page.wait_for_selector("text=0 corrections saved.")
        assert not speaker.exists()
        assert page.errors == []


# HTTP


def status(opener: urllib.request.OpenerDirector, url: str, **form: str) -> int:
    data = urllib.parse.urlencode(form).encode() if form else None
    try:
        return opener.open(url, data, timeout=HANG_S).status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
@needs_gradio
def test_password_and_policy_over_http(model: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    with app(tmp_path, model, password=SESAME) as address:
        (tmp_path / "feedback/marks.jsonl").write_text("{}")
        (tmp_path / "feedback/some.wav").write_bytes(encode(voice(0.5, 16000), 16000))
        cookies = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), cookies)
        recording = f"{address}gradio_api/file={tmp_path}/feedback/some.wav"
        for url in (f"{address}config", recording):
            assert status(opener, url) == 401
        assert status(opener, f"{address}login", username="voice", password=SESAME[1:]) == 400
        assert status(opener, f"{address}login", username="other", password=SESAME) == 429  # too soon
        assert status(opener, f"{address}theme.css") == 200
        time.sleep(1.1)
        assert status(opener, f"{address}login", username="other", password=SESAME) == 400
        assert status(opener, f"{address}config") == 401
        time.sleep(2.1)
        assert status(opener, f"{address}login", username="voice", password=SESAME) == 200
        assert status(opener, f"{address}config") == 200
        assert status(opener, recording) == 200
        (tmp_path / "feedback/notes.bak").write_text("mine")
        own = tmp_path / "feedback"
        for other in (secret, own / "notes.bak", own / "marks.jsonl", model / "config.json", "http://127.0.0.1:9/x"):
            assert status(opener, f"{address}gradio_api/file={other}") == 403
        assert "default-src 'self'" in opener.open(address, timeout=HANG_S).headers["content-security-policy"]


# Errors at start-up


@pytest.mark.parametrize("host", ["192.168.1.2", "example.org", "::", "0"])
def test_other_hosts_require_a_password(
    host: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VITS_TRAINER_PASSWORD", raising=False)
    assert main(["feedback_app", "--host", host]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "--password_file" in err


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_requires_no_password(host: str) -> None:
    assert FeedbackAppConfig(host=host).is_loopback


def test_password_file_is_validated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "password"
    file.write_text("short\n")
    flags = ["feedback_app", "--host", "192.168.1.2", "--password_file", str(file)]
    assert main(flags) == 2
    assert "too short" in capsys.readouterr().err
    file.unlink()
    assert main(flags) == 2
    assert "cannot be read" in capsys.readouterr().err
    file.write_text(f"{SESAME}\n")
    assert main([*flags, "--model_dir", str(tmp_path / "absent")]) == 2
    assert "contains no voice" in capsys.readouterr().err if HAS_GRADIO else "needs gradio"


def test_missing_gradio_is_reported_with_the_remedy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["feedback_app"]) == 2
    assert capsys.readouterr().err == f"vits-trainer: feedback_app needs gradio: {install_command('app')}\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [("port", 0), ("max_clip_s", 61), ("max_upload_mb", 0), ("epochs", 0), ("learning_rate", -1.0)],
)
def test_invalid_value_is_rejected_with_its_flag(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"--{name} "):
        FeedbackAppConfig(**{name: value})


@pytest.mark.slow
@needs_gradio
def test_port_in_use_is_reported(model: Path, tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        flags = ["--port", str(sock.getsockname()[1]), "--model_dir", str(model)]
        result = subprocess.run(
            [python(), "-m", "vits_trainer", "feedback_app", "--feedback_dir", str(tmp_path / "f"), *flags],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    assert result.returncode == 2
    assert "cannot listen on this address" in result.stderr.splitlines()[-1]


# Event handlers


@pytest.fixture
def handlers(model: Path, tmp_path: Path) -> Iterator[Any]:
    from vits_trainer.feedback.app import FeedbackPage

    config = FeedbackAppConfig(feedback_dir=str(tmp_path / "feedback"), model_dir=str(model))
    store = Corrections(tmp_path / "feedback", 16000, Limits(max_upload_bytes=2**16))
    built = FeedbackPage(
        config, ServedVoice(str(model)), store, TrainingProcess([sys.executable], tmp_path),
        suggestions=["number 1 speaks", "number 2 speaks"],
    )
    built.build()
    yield built
    store.close()


REQUEST = SimpleNamespace(client=SimpleNamespace(host="127.0.0.1"))


@needs_gradio
def test_takes_have_different_seeds_and_unknown_letters_are_listed(handlers: Any) -> None:
    components = handlers.components
    first = handlers.generate(TEXT, None, 1.0, None)[components.playback]
    second = handlers.generate(f" {TEXT}\n", None, 1.0, first)[components.playback]
    other = handlers.generate("number 4 Ж", None, 1.0, second)
    assert (first.take, second.take, other[components.playback].take) == (1, 2, 1)
    assert [playback.speech.seed for playback in (first, second)] == [1234, 1235]
    assert not np.array_equal(first.speech.samples, second.speech.samples)
    assert "does not know “ж”" in other[components.playback_notice]


@needs_gradio
def test_markup_in_a_text_is_escaped(handlers: Any) -> None:
    shown = handlers.generate('number <img src=x onerror="alert(1)"> 1', None, 1.0, None)[handlers.components.speech]
    assert "<img src=x" not in shown
    assert 'onerror="' not in shown


@needs_gradio
def test_repeated_mark_is_saved_once(handlers: Any, tmp_path: Path) -> None:
    playback = handlers.generate(TEXT, None, 1.0, None)[handlers.components.playback]
    right = handlers.mark_right(playback, REQUEST)[handlers.components.playback]
    assert handlers.mark_right(right, REQUEST)[handlers.components.playback] == right
    handlers.mark_wrong(right, REQUEST)
    lines = (tmp_path / "feedback/marks.jsonl").read_text().splitlines()
    assert [json.loads(line)["mark"] for line in lines] == ["right", "wrong"]


@needs_gradio
def test_suggested_sentences_are_those_without_a_mark(handlers: Any) -> None:
    assert handlers.suggest("") == "number 1 speaks"
    playback = handlers.generate("number 1 speaks", None, 1.0, None)[handlers.components.playback]
    judged = handlers.mark_right(playback, REQUEST)[handlers.components.judged]
    assert "1 sentence judged: 1 correct, 0 wrong; 1 of 2 suggested sentences left." in judged
    assert handlers.suggest("") == "number 2 speaks"
    assert handlers.suggest("number 2 speaks") == "number 1 speaks"  # no other is left


@needs_gradio
def test_saving_clears_the_message_that_there_is_nothing_to_train_on(handlers: Any, tmp_path: Path) -> None:
    components = handlers.components
    train = handlers._with_error_notice(handlers.train, components.train_notice)
    assert "no corrections to train on" in train()[components.train_notice]
    recording = tmp_path / "recording.wav"
    recording.write_bytes(encode(voice(1.0, 16000), 16000))
    playback = handlers.generate(TEXT, None, 1.0, None)[components.playback]
    assert handlers.save(str(recording), playback, REQUEST)[components.train_notice] == ""


@needs_gradio
def test_replaced_voice_is_loaded(handlers: Any, model: Path, tmp_path: Path) -> None:
    before = handlers.generate(TEXT, None, 1.0, None)[handlers.components.playback].speech
    renamed = tmp_path / "renamed"
    model.rename(renamed)  # as during replacement: the previous voice stays in use
    assert handlers.generate(TEXT, None, 1.0, None)[handlers.components.playback].speech.model == before.model
    with (renamed / "model.safetensors").open("r+b") as weights:
        weights.seek(-4, os.SEEK_END)
        weights.write(np.float32(0.125).tobytes())
    renamed.rename(model)
    after = handlers.generate(TEXT, None, 1.0, None)[handlers.components.playback].speech
    assert after.model != before.model
    assert handlers.voice.model[:12] in handlers.update_progress()[handlers.components.banner]


@needs_gradio
def test_damaged_new_voice_is_reported_once_and_the_old_one_stays_in_use(handlers: Any, model: Path) -> None:
    before = handlers.generate(TEXT, None, 1.0, None)[handlers.components.playback].speech
    (model / "model.safetensors").write_bytes(b"damaged")
    handler = handlers._with_error_notice(handlers.generate, handlers.components.playback_notice)
    assert "model.safetensors: cannot be read" in handler(TEXT, None, 1.0, None)[handlers.components.playback_notice]
    assert handler(TEXT, None, 1.0, None)[handlers.components.playback].speech.model == before.model


@needs_gradio
def test_user_errors_are_shown_and_unexpected_errors_logged(
    handlers: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import gradio as gr

    notice = handlers.components.correct_notice
    large = tmp_path / "large.wav"
    large.write_bytes(encode(voice(3.0, 16000), 16000))
    playback = handlers.generate(TEXT, None, 1.0, None)[handlers.components.playback]
    shown = handlers._with_error_notice(handlers.save, notice)(str(large), playback, REQUEST)
    assert list(shown) == [notice]
    assert 'role="alert">The file is too large: 0.1 MB, at most 0.0625 MB.' in shown[notice]
    without_recording = handlers._with_error_notice(handlers.save, notice)(None, playback, REQUEST)
    assert "There is no recording yet" in without_recording[notice]
    assert "no corrections to train on" in handlers._with_error_notice(handlers.train, notice)()[notice]
    handlers.corrections = None
    with pytest.raises(gr.Error, match="see the program's log for details"):
        handlers._with_error_notice(handlers.save, notice)(str(large), playback, REQUEST)
    assert "save failed" in caplog.text
    assert "AttributeError" in caplog.text
