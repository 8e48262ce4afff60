"""HTML fragments of the ``feedback_app`` page. Text from users and files is escaped. No gradio, no torch."""

import base64
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from vits_trainer.feedback.corrections import Correction
from vits_trainer.feedback.training_process import AT_WORK, Progress, Stage
from vits_trainer.utils.strings import counted, shown_speaker

SHOWN_CORRECTIONS = 200

_ENDED = {
    Stage.ACCEPTED: ("good", "Training finished: the new voice is in use"),
    Stage.NOTHING_NEW: ("good", "There are no new corrections to train on"),
    Stage.REFUSED: ("warn", "The new voice was rejected; the previous voice stays in use"),
    Stage.CANCELLED: ("warn", "Stopped; the previous voice stays in use"),
    Stage.MISTAKE: ("bad", "Training could not start"),
    Stage.FAILED: ("bad", "Training failed; the previous voice stays in use"),
}


def heading(title: str, hint: str = "") -> str:
    """Returns a section heading with an optional hint below."""
    return f"<h2>{escape(title)}</h2>" + (f'<p class="hint">{escape(hint)}</p>' if hint else "")


def banner(model_dir: str, model: str, rate_hz: int) -> str:
    """Returns the page header with the current voice."""
    return (
        "<h1>Correct a voice</h1>"
        '<p class="hint">Listen to it, record corrections, and train it on them. '
        f"<span>Voice: <code>{escape(model_dir)}</code></span> · "
        f"<span>weights <code>{escape(model[:12])}</code></span> · <span>{rate_hz} Hz</span></p>"
    )


def notice(message: str, kind: str = "good") -> str:
    """Returns a message that screen readers announce immediately. ``kind``: good, warn or bad."""
    role = "alert" if kind == "bad" else "status"
    return f'<p class="notice {kind}" role="{role}">{escape(message)}</p>' if message else ""


def playback(text: str, take: int, seconds: float, wav: bytes, plot: bytes) -> str:
    """Returns a player for the generated speech and its mel spectrogram."""
    return (
        f'<figure class="playback"><figcaption>“{escape(text)}” <span class="hint">take {take}, {seconds:.1f} s</span>'
        f'</figcaption><audio controls autoplay aria-label="Generated speech: {escape(text)}" '
        f'src="data:audio/wav;base64,{_base64(wav)}"></audio>'
        f"{_image(plot, 'Mel spectrogram of the generated speech')}</figure>"
    )


def comparison(seconds: float, generated: bytes, recorded: bytes, plot: bytes) -> str:
    """Returns the generated speech and, below it, the user's recording: players and mel spectrograms.

    Args:
        seconds: length of the recording.
        generated: WAV file of the voice.
        recorded: WAV file of the user, as it would be saved.
        plot: PNG file of both spectrograms.
    """
    return (
        f'<figure class="comparison"><figcaption class="hint">Your recording: {seconds:.1f} s</figcaption>'
        f'<div class="pair">{_player("The voice", generated)}{_player("Your recording", recorded)}</div>'
        f"{_image(plot, 'Mel spectrograms of the generated speech and, below it, of your recording')}</figure>"
    )


def _player(label: str, wav: bytes) -> str:
    source = f"data:audio/wav;base64,{_base64(wav)}"
    return f'<div><span class="hint">{label}</span><audio controls aria-label="{label}" src="{source}"></audio></div>'


def judged(ratings: Mapping[str, str], suggestions: Sequence[str]) -> str:
    """Returns how many sentences have a mark, and how many held-out ones have none."""
    if not ratings and not suggestions:
        return ""
    right = sum(mark == "right" for mark in ratings.values())
    parts = [f"{counted(len(ratings), 'sentence')} judged: {right} correct, {len(ratings) - right} wrong"]
    if suggestions:
        left = sum(text not in ratings for text in suggestions)
        parts.append(f"{left} of {counted(len(suggestions), 'suggested sentence')} left")
    return f'<p class="hint">{"; ".join(parts)}.</p>'


def prompt(text: str) -> str:
    """Returns the text to record."""
    return f'<p class="prompt">Read aloud: <q>{escape(text)}</q></p>'


def saved(corrections: Sequence[Correction], external: int, folder: Path) -> str:
    """Returns the list of corrections, each with a player and a delete button."""
    parts = [f"{counted(len(corrections), 'correction')} saved"]
    if external:
        parts.append(f"{external} added to the directory manually, also used for training")
    if len(corrections) > SHOWN_CORRECTIONS:
        parts.append(f"showing the newest {SHOWN_CORRECTIONS}")
    rows = "".join(_row(correction, folder) for correction in corrections[:SHOWN_CORRECTIONS])
    hint = f'<p class="hint">{escape("; ".join(parts))}.</p>'
    return hint + (f'<ul class="saved" tabindex="0" aria-label="Saved corrections">{rows}</ul>' if rows else "")


def training_status(progress: Progress) -> str:
    """Returns the training status: a progress bar while it runs, the decision with its metrics afterwards."""
    if progress.stage is Stage.IDLE:
        return ""
    lines = escape("\n".join(progress.lines))
    log = f'<pre tabindex="0" aria-label="Last lines of the log">{lines}</pre>'
    if progress.stage not in AT_WORK:
        return f"{_decision(progress)}<details><summary>Last lines of the log</summary>{log}</details>"
    is_known = progress.total_updates > 0
    position = f"update {progress.update} of {progress.total_updates}" if is_known else "preparing"
    if progress.stage is Stage.STOPPING:
        position += ", saving and stopping"
    bar = f'value="{progress.update}" max="{progress.total_updates}"' if is_known else ""
    return (
        f'<p class="progress"><span>Training: {position}</span><span>{_clock(progress.elapsed_s)}</span></p>'
        f'<progress {bar} aria-label="Training progress"></progress>{log}'
    )


def _decision(progress: Progress) -> str:
    kind, title = _ENDED[progress.stage]
    role = "alert" if kind == "bad" else "status"
    decision = progress.decision if progress.stage in (Stage.ACCEPTED, Stage.REFUSED) else None
    metrics = ""
    if decision:
        understood = decision.understood
        mels = (("Mel loss, corrections", decision.corrections), ("Mel loss, validation clips", decision.held_out))
        rows = "".join(_row_of_table(name, f"{one.before:.3f}", f"{one.after:.3f}") for name, one in mels if one)
        if understood:
            name = f"Characters misheard, {understood.texts} texts"
            rows = _row_of_table(name, f"{understood.before:.1%}", f"{understood.after:.1%}") + rows
        if rows:
            titles = ("Lower is better", "before", "after")
            head = "".join(f'<th scope="col">{title}</th>' for title in titles)
            metrics = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        facts = (
            [f"trained on {counted(len(decision.learnt), 'correction')}"]
            if decision.learnt and decision.accepted
            else []
        )
        facts += [f"voice version {decision.version}"] if decision.version is not None and decision.accepted else []
        metrics += f'<p class="hint">{escape(", ".join(facts))} in {_clock(progress.elapsed_s)}.</p>' if facts else ""
    return f'<div class="notice {kind}" role="{role}"><h3>{title}</h3><p>{escape(progress.message)}</p>{metrics}</div>'


def _row_of_table(name: str, before: str, after: str) -> str:
    return f'<tr><th scope="row">{name}</th><td>{before}</td><td>{after}</td></tr>'


def _row(correction: Correction, folder: Path) -> str:
    text = escape(correction.text)
    when = time.strftime("%d %b %Y, %H:%M", time.localtime(correction.saved_s))
    speaker = f" · {escape(shown_speaker(correction.speaker))}" if correction.speaker else ""
    source = quote(f"gradio_api/file={folder.resolve() / correction.name}.wav", safe="/=")
    return (
        f'<li><p class="text">{text}</p><p class="hint">{when} · {correction.duration_s:.1f} s{speaker}</p>'
        f'<div class="controls"><audio controls preload="none" aria-label="Correction: {text}" src="{source}"></audio>'
        f'<button type="button" class="delete" data-name="{escape(correction.name)}" aria-label="Delete: {text}">'
        "Delete</button></div></li>"
    )


def _image(png: bytes, description: str) -> str:
    return f'<img alt="{description}" src="data:image/png;base64,{_base64(png)}">'


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


STYLE = """
.gradio-container { width: 100%; max-width: 1240px !important; margin: 0 auto !important; }
.gradio-container .main.app { max-width: none; padding: 1rem; }
.gradio-container .contain { padding: 0; }
.gradio-container .html-container { padding: 0 !important; }
.gradio-container .block:has(> .html-container > .prose:empty) { display: none; }
.gradio-container h1 { font-size: 1.75rem; font-weight: 700; margin: 0.2rem 0 0.1rem; }
.gradio-container h2 { font-size: 1.2rem; font-weight: 650; margin: 0; }
.gradio-container h3 { font-size: 1rem; font-weight: 650; margin: 0 0 0.2rem; }
.gradio-container .hint, .gradio-container .hint span { color: #52525b; font-size: 0.92rem; }
.dark .gradio-container :is(.hint, .hint span) { color: #d4d4d8; }
.gradio-container .hint { margin: 0.15rem 0 0; }
.gradio-container code { overflow-wrap: anywhere; }
.gradio-container :is(button, select, summary, audio, textarea, pre, ul):focus-visible {
  outline: 3px solid #2563eb !important; outline-offset: 2px; }
.section { border: 1px solid var(--border-color-primary); border-radius: 14px; padding: 1.1rem !important;
  gap: 0.8rem !important; background: var(--background-fill-primary); box-shadow: 0 1px 3px rgb(0 0 0 / 6%); }
.section button.lg { min-height: 2.9rem; }
button.primary { background: #1d4ed8 !important; color: #fff !important; }
button.primary:hover { background: #1e40af !important; }
button.stop { background: #b91c1c !important; color: #fff !important; }
button:disabled { opacity: 0.55; cursor: not-allowed; }
figure { margin: 0; }
figure img { display: block; width: 100%; height: auto; border-radius: 8px; background: #fff; }
figcaption { margin-bottom: 0.4rem; overflow-wrap: anywhere; }
figure audio { display: block; width: 100%; min-width: 0; margin-bottom: 0.5rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(240px, 100%), 1fr)); gap: 0.5rem 1rem; }
#rendering { min-height: 3rem; }
#rendering:has(> .html-container > .prose:empty) { display: block; min-height: 0; }
#recording .source-selection { justify-content: stretch; gap: 0.5rem; height: auto; padding: 0.5rem; }
#recording .source-selection button { flex: 1; width: auto; height: 2.6rem; gap: 0.5rem; font-size: 0.95rem;
  border: 1px solid var(--border-color-primary); border-radius: 8px; color: var(--body-text-color);
  display: flex; align-items: center; justify-content: center; }
#recording .source-selection button.selected { border-color: #1d4ed8; box-shadow: inset 0 0 0 1px #1d4ed8; }
#recording .source-selection svg { width: 1.2rem; height: 1.2rem; flex: none; }
#recording .source-selection button[aria-label="Upload file"]::after { content: "Upload a file"; }
#recording .source-selection button[aria-label="Record audio"]::after { content: "Microphone"; }
#recording :is(.record-button, .stop-button, .stop-button-paused, .pause-button, .resume-button, .mic-select) {
  min-height: 2.5rem; }
#recording .upload-container { height: 9.5rem !important; min-height: 0 !important; }
#recording .icon-button { min-width: 2rem; min-height: 2rem; }
.notice { border-left: 4px solid; border-radius: 6px; padding: 0.55rem 0.75rem; margin: 0; overflow-wrap: anywhere;
  color: #111827 !important; }
.notice :is(h3, p, th, td) { color: #111827 !important; margin: 0; }
.notice.good { border-color: #15803d; background: #dcfce7; }
.notice.warn { border-color: #b45309; background: #fef3c7; }
.notice.bad { border-color: #b91c1c; background: #fee2e2; }
.notice table { margin: 0.5rem 0; border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
.notice :is(table, thead, tbody, tr, th, td) { border: 0 !important; background: none !important; }
.notice :is(th, td) { text-align: left; padding: 0.2rem 0.6rem 0.2rem 0; font-weight: 500; }
.notice tbody tr { border-top: 1px solid rgb(0 0 0 / 15%) !important; }
.prompt { font-size: 1.15rem; margin: 0; overflow-wrap: anywhere; }
ul.saved { list-style: none; margin: 0.5rem 0 0; padding: 0; max-height: 32rem; overflow-y: auto; }
ul.saved li { border-top: 1px solid var(--border-color-primary); padding: 0.7rem 0.2rem; margin: 0; }
ul.saved p { display: block !important; }
ul.saved .text { margin: 0; overflow-wrap: anywhere; }
ul.saved .controls { display: flex; gap: 0.6rem; align-items: center; margin-top: 0.4rem; }
ul.saved audio { margin: 0; height: 2.6rem; flex: 1 1 0; }
button.delete { border: 1px solid #b91c1c; color: #b91c1c; background: transparent; border-radius: 8px; cursor: pointer;
  padding: 0.45rem 0.8rem; min-height: 2.6rem; }
button.delete:hover { background: #b91c1c; color: #fff; }
.dark button.delete { color: #fca5a5; border-color: #fca5a5; }
.progress { display: flex; justify-content: space-between; margin: 0 0 0.3rem; font-variant-numeric: tabular-nums; }
progress { appearance: none; display: block; width: 100%; height: 0.8rem; margin-bottom: 0.6rem; border: 0;
  border-radius: 0.4rem; overflow: hidden; background: #d4d4d8; color: #1d4ed8; }
progress::-webkit-progress-bar { background: #d4d4d8; }
progress::-webkit-progress-value { background: #1d4ed8; transition: width 0.4s; }
progress::-moz-progress-bar { background: #1d4ed8; }
summary { cursor: pointer; padding: 0.4rem 0; }
.gradio-container pre { display: flex; flex-direction: column-reverse; /* keeps the newest line visible */
  font-size: 0.75rem; line-height: 1.4; max-height: 17rem; overflow: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; margin: 0.4rem 0 0; padding: 0.6rem; border-radius: 8px;
  background: var(--background-fill-secondary); color: var(--body-text-color); }
@media (max-width: 640px) {
  .gradio-container .main.app { padding: 0.6rem; }
  .section { padding: 0.9rem !important; }
}
"""
