"""The ``feedback_app`` page: Gradio components and their event handlers."""

import dataclasses
import functools
import hmac
import io
import logging
import queue
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gradio as gr
import numpy as np
import soundfile as sf
from numpy.typing import NDArray
from starlette.middleware import Middleware

from vits_trainer.config.feedback import FeedbackAppConfig
from vits_trainer.data.audio import to_pcm16
from vits_trainer.feedback import views
from vits_trainer.feedback.corrections import MARKS_FILE, Corrections, Rating, normalize_text
from vits_trainer.feedback.request_filter import RequestFilter
from vits_trainer.feedback.served_voice import ServedVoice, SpokenText
from vits_trainer.feedback.suggestions import next_text
from vits_trainer.feedback.training_process import AT_WORK, Stage, TrainingProcess
from vits_trainer.utils.errors import ConfigError, DataError, VitsTrainerError
from vits_trainer.utils.files import discard
from vits_trainer.utils.strings import shown_speaker

logger = logging.getLogger(__name__)

USER = "voice"
"""User name for the login."""
_FIRST_SEED = 1234
"""Default seed of ``synthesize``; each further take of a text increments it."""
_POLL_S = 1.0
_UPLOAD_LIFETIME_S = 3600
"""Lifetime of unsaved uploads, in seconds."""
_TRAIN_HINT = "Trains the voice on the saved corrections. It is only replaced if the new voice measures no worse."
_FONTS = ["system-ui", "sans-serif"]
"""System fonts; no font is downloaded."""
_MAX_QUEUED = 32
"""Maximum number of queued requests."""
_DELETE = """
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-name]');
  if (button && confirm('Permanently delete this correction?')) trigger('delete', {name: button.dataset.name});
});
"""
_SCROLL_TO_CORRECTION = "() => document.getElementById('correct')?.scrollIntoView({block: 'nearest'})"

_Updates = dict[Any, Any]
"""New values by component; other components are unchanged."""


@dataclass(frozen=True)
class LastPlayback:
    """The speech last played to the user of this page."""

    speech: SpokenText
    take: int
    mark: str = ""
    """``right`` or ``wrong`` once marked, else empty."""


class PageComponents:
    """Components that handlers read and write, in page order."""

    def __init__(self, config: FeedbackAppConfig, speakers: Sequence[str], has_suggestions: bool) -> None:
        """Creates the layout. Must be called inside ``gradio.Blocks``."""
        self.playback = gr.State(None)
        self.timer = gr.Timer(_POLL_S, active=False)
        self.banner = gr.HTML()
        with gr.Row(equal_height=False):
            with gr.Column(min_width=320, scale=3):
                self._listening_section(config, speakers, has_suggestions)
                self._correction_section(config)
            with gr.Column(min_width=320, scale=2):
                self._training_section()
                with gr.Column(elem_classes="section"):
                    gr.HTML(views.heading("Saved corrections"))
                    self.saved = gr.HTML(js_on_load=_DELETE)
                    self.saved_notice = gr.HTML()

    def _listening_section(self, config: FeedbackAppConfig, speakers: Sequence[str], has_suggestions: bool) -> None:
        with gr.Column(elem_classes="section"):
            gr.HTML(views.heading("1. Listen", "Type a sentence and press Enter. Repeat for another take."))
            self.text = gr.Textbox(
                label=f"Sentence (at most {config.max_text_characters} characters)",
                lines=1,
                max_lines=5,
                max_length=config.max_text_characters,
                autofocus=True,
                elem_id="sentence",
            )
            self.suggest = gr.Button("Suggest a sentence", visible=has_suggestions, elem_id="suggest")
            first = config.speaker or (speakers[0] if speakers else None)
            shown = [(shown_speaker(name), name) for name in speakers]
            self.speaker = gr.Dropdown(shown, value=first, label="Speaker", visible=bool(speakers), elem_id="speaker")
            self.rate = gr.Slider(0.5, 2.0, 1.0, step=0.05, label="Speaking rate (1 = the voice's own)", elem_id="rate")
            self.generate = gr.Button("Generate speech", variant="primary", elem_id="hear")
            self.speech = gr.HTML(elem_id="rendering")
            with gr.Row(visible=False) as self.marking:
                self.right = gr.Button("✓ Correct", min_width=120, elem_id="right")
                self.wrong = gr.Button("✗ Wrong", min_width=120, elem_id="wrong")
            self.playback_notice = gr.HTML(elem_id="playback-notice")
            self.judged = gr.HTML(elem_id="judged")

    def _correction_section(self, config: FeedbackAppConfig) -> None:
        limits = f"{config.max_clip_s:g} s, {config.max_upload_mb:g} MB"
        hint = f"For a sentence marked as wrong: record it, or upload WAV, FLAC, MP3 or Ogg (at most {limits})."
        with gr.Column(elem_classes="section"):
            gr.HTML(views.heading("2. Record the correct speech", hint))
            self.correction = gr.Column(visible=False, elem_id="correct")
        with self.correction:
            self.prompt = gr.HTML()
            self.recording = gr.Audio(
                sources=["microphone", "upload"],
                type="filepath",
                label="Your recording",
                buttons=[],  # the default buttons include sharing to the Hugging Face Hub
                elem_id="recording",
            )
            self.comparison = gr.HTML()
            self.save = gr.Button("Save correction", variant="primary", elem_id="save")
            self.correct_notice = gr.HTML(elem_id="correct-notice")

    def _training_section(self) -> None:
        with gr.Column(elem_classes="section"):
            gr.HTML(views.heading("3. Train", _TRAIN_HINT))
            with gr.Row():
                self.train = gr.Button("Start training", variant="primary", min_width=120, elem_id="learn")
                self.stop = gr.Button("Stop", variant="stop", min_width=120, visible=False, elem_id="stop")
            self.train_notice = gr.HTML()
            self.training_status = gr.HTML(elem_id="learning")


class FeedbackPage:
    """Connects a voice, its corrections and its training to the components of the page."""

    def __init__(
        self,
        config: FeedbackAppConfig,
        voice: ServedVoice,
        corrections: Corrections,
        training: TrainingProcess,
        suggestions: Sequence[str] = (),
    ) -> None:
        self.suggestions = suggestions
        self.config = config
        self.voice = voice
        self.corrections = corrections
        self.training = training

    def build(self) -> Any:
        """Builds the ``gradio.Blocks``."""
        with gr.Blocks(
            title="Correct a voice", analytics_enabled=False, delete_cache=(_UPLOAD_LIFETIME_S, _UPLOAD_LIFETIME_S)
        ) as page:
            p = self.components = PageComponents(self.config, self.voice.speakers, bool(self.suggestions))
            generate = {
                "handler": self.generate,
                "inputs": [p.text, p.speaker, p.rate, p.playback],
                "notice": p.playback_notice,
                "wait": p.speech,
            }
            self._on(p.text.submit, **generate)
            self._on(p.generate.click, **generate)
            p.suggest.click(self.suggest, [p.text], [p.text], api_visibility="private", show_progress="hidden")
            self._on(p.right.click, self.mark_right, [p.playback], p.playback_notice)
            marked = self._on(p.wrong.click, self.mark_wrong, [p.playback], p.playback_notice)
            marked.then(None, js=_SCROLL_TO_CORRECTION)
            self._on(p.recording.change, self.check, [p.recording, p.playback], p.correct_notice, p.comparison)
            self._on(p.save.click, self.save, [p.recording, p.playback], p.correct_notice)
            self._on(p.saved.delete, self.delete, [], p.saved_notice)
            self._on(p.train.click, self.train, [], p.train_notice)
            self._on(p.stop.click, self.stop, [], p.train_notice)
            self._on(p.timer.tick, self.update_progress, [], p.train_notice)
            self._on(page.load, self.open, [], p.train_notice)
        return page

    def open(self) -> _Updates:
        """Returns the initial content of the page, including a training in progress."""
        return self._corrections() | self._progress() | self._banner() | self._judged()

    def suggest(self, current: str) -> str:
        """Returns a held-out sentence that has no mark yet."""
        return next_text(self.suggestions, self.corrections.ratings(), current)

    def generate(self, text: str, speaker: str | None, rate: float, before: LastPlayback | None) -> _Updates:
        """Generates speech for the text, with another seed for each repetition."""
        p, text = self.components, normalize_text(text or "", self.config.max_text_characters)
        speaker = speaker if self.voice.speakers else None
        again = before is not None and (before.speech.text, before.speech.speaker) == (text, speaker)
        take = before.take + 1 if before is not None and again else 1
        speech = self.voice.speak(text, _FIRST_SEED + take - 1, speaker, rate)
        plot = self.voice.plot_mels({"generated speech": speech.samples})
        skipped = f"The voice does not know {speech.unknown}: skipped. Write it as words." if speech.unknown else ""
        return self._banner() | {
            p.playback: LastPlayback(speech, take),
            p.speech: views.playback(
                text, take, len(speech.samples) / speech.rate_hz, _wav(speech.samples, speech.rate_hz), plot
            ),
            p.marking: gr.update(visible=True),
            p.correction: gr.update(visible=False),
            p.recording: None,
            p.playback_notice: views.notice(skipped, "warn"),
            p.correct_notice: "",
        }

    def mark_right(self, playback: LastPlayback | None, request: gr.Request) -> _Updates:
        """Marks the speech as correct."""
        marked = self._save_mark(playback, "right", request)
        p = self.components
        return self._judged() | {
            p.playback: marked,
            p.playback_notice: views.notice("Marked as correct."),
            p.correction: gr.update(visible=False),
            p.correct_notice: "",
        }

    def mark_wrong(self, playback: LastPlayback | None, request: gr.Request) -> _Updates:
        """Marks the speech as wrong and asks for a recording."""
        marked = self._save_mark(playback, "wrong", request)
        p = self.components
        return self._judged() | {
            p.playback: marked,
            p.playback_notice: views.notice("Marked as wrong. Now record the correct speech.", "warn"),
            p.correction: gr.update(visible=True),
            p.prompt: views.prompt(marked.speech.text),
        }

    def check(self, recording: str | None, playback: LastPlayback | None) -> _Updates:
        """Validates a new recording and plots it below the generated speech."""
        p = self.components
        if recording is None or playback is None:
            return {p.comparison: ""}
        samples = self.corrections.read(Path(recording))
        plot = self.voice.plot_mels({"generated speech": playback.speech.samples, "your recording": samples})
        generated = _wav(playback.speech.samples, playback.speech.rate_hz)
        mine = _wav(samples, self.corrections.rate_hz)
        page = views.comparison(len(samples) / self.corrections.rate_hz, generated, mine, plot)
        return {p.comparison: page, p.correct_notice: ""}

    def save(self, recording: str | None, playback: LastPlayback | None, request: gr.Request) -> _Updates:
        """Saves the recording with the text of the generated speech."""
        p = self.components
        if playback is None or recording is None:
            raise DataError("There is no recording yet. Record or upload the correct speech.")
        correction = self.corrections.add(
            playback.speech.text, Path(recording), _client(request), playback.speech.speaker
        )
        discard(Path(recording))  # the copy made by Gradio
        message = f"Saved: {correction.duration_s:.1f} s. Correct another sentence, or start training."
        return self._corrections() | {
            p.recording: None,
            p.correction: gr.update(visible=False),
            p.playback_notice: views.notice(message),
            p.correct_notice: "",
            p.train_notice: "",  # that there is nothing to train on is no longer true
            p.saved_notice: "",
        }

    def delete(self, event: gr.EventData) -> _Updates:
        """Deletes the correction whose button was clicked."""
        self.corrections.delete(str(event.name))
        return self._corrections() | {self.components.saved_notice: views.notice("Deleted.")}

    def train(self) -> _Updates:
        """Starts training."""
        self._require_corrections()
        self.training.start()
        return self._progress() | {self.components.train_notice: ""}

    def stop(self) -> _Updates:
        """Requests training to stop."""
        self.training.cancel()
        return self._progress()

    def update_progress(self) -> _Updates:
        """Updates the training status; loads the new voice when training has ended."""
        shown = self._progress()
        if self.training.progress().stage in AT_WORK:
            return shown
        self.voice.refresh()
        return self._corrections() | shown | self._banner()

    def _require_corrections(self) -> None:
        if not self.corrections.all() and not self.corrections.count_external():
            raise DataError("There are no corrections to train on yet.")

    def _save_mark(
        self, playback: LastPlayback | None, mark: Literal["right", "wrong"], request: gr.Request
    ) -> LastPlayback:
        if playback is None:
            raise DataError("Generate speech first.")
        speech = playback.speech
        if playback.mark != mark:
            self.corrections.mark(
                Rating(speech.text, mark, speech.seed, speech.model, speech.speaker), _client(request)
            )
        return dataclasses.replace(playback, mark=mark)

    def _banner(self) -> _Updates:
        return {self.components.banner: views.banner(self.config.model_dir, self.voice.model, self.voice.rate_hz)}

    def _corrections(self) -> _Updates:
        saved, external = self.corrections.all(), self.corrections.count_external()
        return {self.components.saved: views.saved(saved, external, self.corrections.folder)}

    def _judged(self) -> _Updates:
        return {self.components.judged: views.judged(self.corrections.ratings(), self.suggestions)}

    def _progress(self) -> _Updates:
        p, progress = self.components, self.training.progress()
        at_work = progress.stage in AT_WORK
        return {
            p.training_status: views.training_status(progress),
            p.train: gr.update(interactive=not at_work),
            p.stop: gr.update(visible=at_work, interactive=progress.stage is Stage.RUNNING),
            p.timer: gr.update(active=at_work),
        }

    def _on(
        self, trigger: Any, handler: Callable[..., _Updates], inputs: list[Any], notice: Any, wait: Any = None
    ) -> Any:
        """Registers ``handler`` for an event; ``notice`` shows its errors and ``wait`` its progress."""
        p = self.components
        entered = (p.text, p.speaker, p.rate)  # never overwritten
        outputs = [component for component in vars(p).values() if not any(component is own for own in entered)]
        return trigger(
            self._with_error_notice(handler, notice),
            inputs,
            outputs,
            api_visibility="private",
            show_progress="hidden" if wait is None else "minimal",
            show_progress_on=wait,
        )

    def _with_error_notice(self, handler: Callable[..., _Updates], notice: Any) -> Callable[..., _Updates]:
        @functools.wraps(handler)
        def handle(*values: Any) -> _Updates:
            try:
                return handler(*values)
            except VitsTrainerError as error:
                return {notice: views.notice(str(error), "bad")}
            except Exception as error:
                logger.exception("%s failed", handler.__name__)
                message = "Unexpected error; see the program's log for details."
                raise gr.Error(message, print_exception=False) from error

        return handle


def serve(page: Any, config: FeedbackAppConfig, password: str | None) -> int:
    """Serves the page until SIGINT or SIGTERM and returns 128 + the signal number as exit code.

    Raises:
        ConfigError: the address cannot be used.
    """
    feedback = Path(config.feedback_dir).resolve()
    received_signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: received_signals.put(received))
    try:
        _, address, _ = page.queue(max_size=_MAX_QUEUED).launch(
            server_name=config.host,
            server_port=config.port,
            auth=None if password is None else functools.partial(_check_password, password),
            auth_message=f'User name: "{USER}".',
            max_file_size=round(config.max_upload_mb * 2**20),
            allowed_paths=[str(feedback)],
            blocked_paths=[str(feedback / MARKS_FILE)],
            theme=gr.themes.Default(font=_FONTS, font_mono=["ui-monospace", "monospace"], primary_hue="blue"),
            css=views.STYLE,
            app_kwargs={"middleware": [Middleware(RequestFilter, config=config, local_only=password is None)]},
            prevent_thread_lock=True,
            share=False,
            quiet=True,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
        )
    except OSError as error:
        raise ConfigError(
            f"--host {config.host} --port {config.port}: cannot listen on this address ({error})."
        ) from error
    logger.info("Serving at %s (Ctrl-C to stop)", address)
    try:
        return 128 + received_signals.get()
    finally:
        page.close(verbose=False)


def _check_password(password: str, user: str, entered: str) -> bool:
    is_valid = hmac.compare_digest(user.encode(), USER.encode()) & hmac.compare_digest(
        entered.encode(), password.encode()
    )
    if not is_valid:
        logger.warning("Rejected a login with a wrong password")
    return is_valid


def _client(request: gr.Request) -> str:
    return str(request.client.host) if request.client else "unknown"


def _wav(samples: NDArray[np.float32], rate_hz: int) -> bytes:
    content = io.BytesIO()
    sf.write(content, to_pcm16(samples), rate_hz, format="WAV", subtype="PCM_16")
    return content.getvalue()
