"""The page of ``feedback_app``: Gradio components, and what happens when they are used."""

import dataclasses
import functools
import hmac
import io
import logging
import queue
import re
import signal
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import gradio as gr
import soundfile as sf
from starlette.middleware import Middleware

from vits_trainer.config.feedback import FeedbackAppConfig, is_loopback
from vits_trainer.data.audio import to_pcm16
from vits_trainer.feedback import views
from vits_trainer.feedback.corrections import MARKS_FILE, Corrections, Mark, normalised_text
from vits_trainer.feedback.served_voice import ServedVoice, SpokenText
from vits_trainer.feedback.training_process import AT_WORK, Stage, TrainingProcess
from vits_trainer.utils.errors import ConfigError, DataError, VitsTrainerError
from vits_trainer.utils.files import discard

logger = logging.getLogger(__name__)

USER = "voice"
"""Whom the password belongs to."""
_FIRST_SEED = 1234
"""synthesize's; each further take of a text has the next."""
_WRONG_PASSWORD_S = 1.0
"""Guessing passwords is to be slow."""
_POLL_S = 1.0
_KEPT_S = 3600
"""How long an upload that was not saved is kept."""
_LEARN_HINT = "Trains on the saved corrections. The voice is replaced only by one that proves no worse."
_FONTS = ["system-ui", "sans-serif"]
"""Those of the user's machine: none is fetched."""
_BUSY = 32
"""Requests that may wait."""
_POLICY = (
    b"default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    b"style-src 'self' 'unsafe-inline'; frame-ancestors 'self'; form-action 'self'; base-uri 'self'"
)
"""A browser that keeps it sends nothing to any other machine."""
_DELETE = """
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-name]');
  if (button && confirm('Delete this correction for good?')) trigger('delete', {name: button.dataset.name});
});
"""
_SHOW_CORRECTING = "() => document.getElementById('correct')?.scrollIntoView({block: 'nearest'})"

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Scope]]
_Send = Callable[[_Scope], Awaitable[None]]
_Answer = dict[Any, Any]
"""New values by component; what is not in it stays."""


@dataclass(frozen=True)
class LastPlayback:
    """What this page's user has just heard."""

    rendering: SpokenText
    take: int
    mark: str = ""
    """right or wrong, once it is marked."""


class PageComponents:
    """The components that handlers read and write, in the page's order."""

    def __init__(self, config: FeedbackAppConfig) -> None:
        """Lays the page out; to be called within ``gradio.Blocks``."""
        self.heard = gr.State(None)
        self.timer = gr.Timer(_POLL_S, active=False)
        self.banner = gr.HTML()
        with gr.Row(equal_height=False):
            with gr.Column(min_width=320, scale=3):
                self._listening(config)
                self._correcting(config)
            with gr.Column(min_width=320, scale=2):
                self._learning()
                with gr.Column(elem_classes="section"):
                    gr.HTML(views.heading("Saved corrections"))
                    self.saved = gr.HTML(js_on_load=_DELETE)
                    self.saved_notice = gr.HTML()

    def _listening(self, config: FeedbackAppConfig) -> None:
        with gr.Column(elem_classes="section"):
            gr.HTML(views.heading("1. Hear", "Type a sentence and press Enter. Hear it again for another take."))
            self.text = gr.Textbox(
                label=f"Sentence (at most {config.max_text_characters} characters)",
                lines=1,
                max_lines=5,
                max_length=config.max_text_characters,
                autofocus=True,
                elem_id="sentence",
            )
            self.hear = gr.Button("Hear", variant="primary", elem_id="hear")
            self.rendering = gr.HTML(elem_id="rendering")
            with gr.Row(visible=False) as self.judging:
                self.right = gr.Button("✓ It is right", min_width=120, elem_id="right")
                self.wrong = gr.Button("✗ It is wrong", min_width=120, elem_id="wrong")
            self.heard_notice = gr.HTML(elem_id="heard-notice")

    def _correcting(self, config: FeedbackAppConfig) -> None:
        most = f"{config.max_clip_s:g} s, {config.max_upload_mb:g} MB"
        hint = f"Record it, or upload a WAV, FLAC, MP3 or Ogg file, of at most {most}."
        with gr.Column(visible=False, elem_classes="section", elem_id="correct") as self.correcting:
            gr.HTML(views.heading("2. Say how it should be", hint))
            self.wanted = gr.HTML()
            self.recording = gr.Audio(
                sources=["microphone", "upload"],
                type="filepath",
                label="Your recording",
                buttons=[],  # one of them would share it with the Hugging Face Hub
                elem_id="recording",
            )
            self.comparison = gr.HTML()
            self.save = gr.Button("Save the correction", variant="primary", elem_id="save")
            self.correct_notice = gr.HTML(elem_id="correct-notice")

    def _learning(self) -> None:
        with gr.Column(elem_classes="section"):
            gr.HTML(views.heading("3. Learn", _LEARN_HINT))
            with gr.Row():
                self.learn = gr.Button("Learn now", variant="primary", min_width=120, elem_id="learn")
                self.stop = gr.Button("Stop", variant="stop", min_width=120, visible=False, elem_id="stop")
            self.learn_notice = gr.HTML()
            self.learning = gr.HTML(elem_id="learning")


class FeedbackPage:
    """Joins a voice, its corrections and its learning to the components of a page."""

    def __init__(
        self, config: FeedbackAppConfig, voice: ServedVoice, corrections: Corrections, learner: TrainingProcess
    ) -> None:
        self.config = config
        self.voice = voice
        self.corrections = corrections
        self.learner = learner

    def build(self) -> Any:
        """The ``gradio.Blocks``."""
        with gr.Blocks(title="Correct a voice", analytics_enabled=False, delete_cache=(_KEPT_S, _KEPT_S)) as page:
            p = self.parts = PageComponents(self.config)
            hear = {"handler": self.hear, "inputs": [p.text, p.heard], "notice": p.heard_notice, "wait": p.rendering}
            self._on(p.text.submit, **hear)
            self._on(p.hear.click, **hear)
            self._on(p.right.click, self.mark_right, [p.heard], p.heard_notice)
            marked = self._on(p.wrong.click, self.mark_wrong, [p.heard], p.heard_notice)
            marked.then(None, js=_SHOW_CORRECTING)
            self._on(p.recording.change, self.check, [p.recording, p.heard], p.correct_notice, p.comparison)
            self._on(p.save.click, self.save, [p.recording, p.heard], p.correct_notice)
            self._on(p.saved.delete, self.delete, [], p.saved_notice)
            self._on(p.learn.click, self.learn, [], p.learn_notice)
            self._on(p.stop.click, self.stop, [], p.learn_notice)
            self._on(p.timer.tick, self.watch, [], p.learn_notice)
            self._on(page.load, self.open, [], p.learn_notice)
        return page

    def open(self) -> _Answer:
        """All that a page shows when it is opened, be it in the midst of learning."""
        return self._corrections() | self._progress() | self._banner()

    def hear(self, text: str, before: LastPlayback | None) -> _Answer:
        """Speaks the text, each further time with another seed."""
        p, said = self.parts, normalised_text(text or "", self.config.max_text_characters)
        again = before is not None and before.rendering.text == said
        take = before.take + 1 if before is not None and again else 1
        spoken = self.voice.speak(said, _FIRST_SEED + take - 1)
        picture = self.voice.picture({"the voice": spoken.samples})
        left_out = f"The voice does not know {spoken.unknown} and leaves it out." if spoken.unknown else ""
        return self._banner() | {
            p.heard: LastPlayback(spoken, take),
            p.rendering: views.rendering(said, take, len(spoken.samples) / spoken.rate_hz, _wav(spoken), picture),
            p.judging: gr.update(visible=True),
            p.correcting: gr.update(visible=False),
            p.recording: None,
            p.heard_notice: views.notice(left_out, "warn"),
            p.correct_notice: "",
        }

    def mark_right(self, heard: LastPlayback | None, request: gr.Request) -> _Answer:
        """Notes that the rendering is right."""
        marked = self._mark(heard, "right", request)
        p = self.parts
        return {
            p.heard: marked,
            p.heard_notice: views.notice("Noted as right."),
            p.correcting: gr.update(visible=False),
        }

    def mark_wrong(self, heard: LastPlayback | None, request: gr.Request) -> _Answer:
        """Notes that the rendering is wrong, and asks for a recording."""
        marked = self._mark(heard, "wrong", request)
        p = self.parts
        return {
            p.heard: marked,
            p.heard_notice: views.notice("Noted as wrong. Now say how it should be.", "warn"),
            p.correcting: gr.update(visible=True),
            p.wanted: views.wanted(marked.rendering.text),
        }

    def check(self, recording: str | None, heard: LastPlayback | None) -> _Answer:
        """Judges a recording as soon as it is there, and draws it below what the voice said."""
        p = self.parts
        if recording is None or heard is None:
            return {p.comparison: ""}
        samples = self.corrections.read(Path(recording))
        picture = self.voice.picture({"the voice": heard.rendering.samples, "your recording": samples})
        return {p.comparison: views.comparison(len(samples) / self.corrections.rate_hz, picture), p.correct_notice: ""}

    def save(self, recording: str | None, heard: LastPlayback | None, request: gr.Request) -> _Answer:
        """Saves the recording with the text that was heard."""
        p = self.parts
        if heard is None or recording is None:
            raise DataError("There is no recording yet: record or upload how it should be.")
        correction = self.corrections.add(heard.rendering.text, Path(recording), _client(request))
        discard(Path(recording))  # Gradio's copy of it
        words = f"Saved: {correction.duration_s:.1f} s. Correct the next sentence, or let the voice learn."
        return self._corrections() | {
            p.recording: None,
            p.correcting: gr.update(visible=False),
            p.heard_notice: views.notice(words),
        }

    def delete(self, event: gr.EventData) -> _Answer:
        """Deletes the correction whose button was pressed."""
        self.corrections.delete(str(event.name))
        return self._corrections() | {self.parts.saved_notice: views.notice("Deleted.")}

    def learn(self) -> _Answer:
        """Starts learning."""
        self._require_corrections()
        self.learner.start()
        return self._progress() | {self.parts.learn_notice: ""}

    def stop(self) -> _Answer:
        """Asks learning to stop."""
        self.learner.cancel()
        return self._progress()

    def watch(self) -> _Answer:
        """Shows how learning stands; at its end the new voice is loaded."""
        shown = self._progress()
        if self.learner.progress().stage in AT_WORK:
            return shown
        self.voice.refresh()
        return self._corrections() | shown | self._banner()

    def _require_corrections(self) -> None:
        if not self.corrections.all() and not self.corrections.others():
            raise DataError("There is no correction to learn from yet.")

    def _mark(self, heard: LastPlayback | None, mark: Literal["right", "wrong"], request: gr.Request) -> LastPlayback:
        if heard is None:
            raise DataError("Hear a sentence first.")
        spoken = heard.rendering
        if heard.mark != mark:
            self.corrections.mark(Mark(spoken.text, mark, spoken.seed, spoken.model), _client(request))
        return dataclasses.replace(heard, mark=mark)

    def _banner(self) -> _Answer:
        return {self.parts.banner: views.banner(self.config.model_dir, self.voice.model, self.voice.rate_hz)}

    def _corrections(self) -> _Answer:
        found, others = self.corrections.all(), self.corrections.others()
        return {self.parts.saved: views.saved(found, others, self.corrections.folder)}

    def _progress(self) -> _Answer:
        p, progress = self.parts, self.learner.progress()
        at_work = progress.stage in AT_WORK
        return {
            p.learning: views.learning(progress),
            p.learn: gr.update(interactive=not at_work),
            p.stop: gr.update(visible=at_work, interactive=progress.stage is Stage.RUNNING),
            p.timer: gr.update(active=at_work),
        }

    def _on(
        self, trigger: Any, handler: Callable[..., _Answer], inputs: list[Any], notice: Any, wait: Any = None
    ) -> Any:
        """Has ``handler`` answer an event; ``notice`` shows its errors, and ``wait`` that it takes a while."""
        outputs = [part for part in vars(self.parts).values() if part is not self.parts.text]
        return trigger(
            self._answering(handler, notice),
            inputs,
            outputs,
            api_visibility="private",
            show_progress="hidden" if wait is None else "minimal",
            show_progress_on=wait,
        )

    def _answering(self, handler: Callable[..., _Answer], notice: Any) -> Callable[..., _Answer]:
        @functools.wraps(handler)
        def answer(*values: Any) -> _Answer:
            try:
                return handler(*values)
            except VitsTrainerError as error:
                return {notice: views.notice(str(error), "bad")}
            except Exception as error:
                logger.exception("%s failed", handler.__name__)
                words = "Something went wrong that should not; the program's log has the details."
                raise gr.Error(words, print_exception=False) from error

        return answer


class SecurityHeadersMiddleware:
    """ASGI: a policy by which browsers send nothing elsewhere; Gradio's own fetching of other addresses is refused."""

    def __init__(self, app: Callable[[_Scope, _Receive, _Send], Awaitable[None]], local_only: bool) -> None:
        """``local_only``: where there is no password, other sites in the user's browser must not use the page."""
        self.app = app
        self.local_only = local_only

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Passes a request on, or answers it with 403."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = str(scope["path"])
        if "/proxy=" in path or re.search(r"/file=\s*\w+:/", path) or (self.local_only and _is_cross_origin(scope)):
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return

        async def send_with_policy(message: _Scope) -> None:
            if message["type"] == "http.response.start":
                more = [(b"content-security-policy", _POLICY), (b"x-content-type-options", b"nosniff")]
                message["headers"] = [*message.get("headers", []), *more, (b"referrer-policy", b"same-origin")]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def _is_cross_origin(scope: _Scope) -> bool:
    """Whether another site asks: under a name that it has made lead to this machine, or from its own pages."""
    headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
    host, origin = headers.get(b"host", ""), headers.get(b"origin")
    try:
        known = is_loopback(urlsplit(f"//{host}").hostname or "")
        return not known or (origin is not None and urlsplit(origin).netloc != host)
    except ValueError:
        return True


def serve(page: Any, config: FeedbackAppConfig, password: str | None) -> int:
    """Listens until SIGINT or SIGTERM; the exit code is 128 + the signal's number.

    Raises:
        ConfigError: nothing can listen at that address.
    """
    feedback = Path(config.feedback_dir).resolve()
    stopped: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: stopped.put(received))
    try:
        _, address, _ = page.queue(max_size=_BUSY).launch(
            server_name=config.host,
            server_port=config.port,
            auth=None if password is None else functools.partial(_check_password, password),
            auth_message=f'The user is "{USER}".',
            max_file_size=round(config.max_upload_mb * 2**20),
            allowed_paths=[str(feedback)],
            blocked_paths=[str(feedback / MARKS_FILE)],
            theme=gr.themes.Default(font=_FONTS, font_mono=["ui-monospace", "monospace"], primary_hue="blue"),
            css=views.STYLE,
            app_kwargs={"middleware": [Middleware(SecurityHeadersMiddleware, local_only=password is None)]},
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
        raise ConfigError(f"--host {config.host} --port {config.port}: cannot listen there ({error}).") from error
    logger.info("The page is at %s  (Ctrl-C ends it)", address)
    try:
        return 128 + stopped.get()
    finally:
        page.close(verbose=False)


def _check_password(password: str, user: str, given: str) -> bool:
    known = hmac.compare_digest(user.encode(), USER.encode()) & hmac.compare_digest(given.encode(), password.encode())
    if not known:
        logger.warning("a wrong password was given")
        time.sleep(_WRONG_PASSWORD_S)
    return known


def _client(request: gr.Request) -> str:
    return str(request.client.host) if request.client else "unknown"


def _wav(spoken: SpokenText) -> bytes:
    content = io.BytesIO()
    sf.write(content, to_pcm16(spoken.samples), spoken.rate_hz, format="WAV", subtype="PCM_16")
    return content.getvalue()
