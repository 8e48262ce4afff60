"""Finds speech (Silero VAD, https://github.com/snakers4/silero-vad) and divides it into clips, in pauses."""

import importlib
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vits_trainer.data.segmentation.reading import SPEECH_RATE_HZ
from vits_trainer.utils.errors import ConfigError
from vits_trainer.utils.installation import install_command

FRAME_SAMPLES = 512
FRAME_S = FRAME_SAMPLES / SPEECH_RATE_HZ
_CONTEXT_SAMPLES, _STATE_VALUES = 64, 128
"""Of Silero's model: end of the frame before that each frame gets, and size of its recurrent state."""
SHORTEST_S, LONGEST_S = 1.0, 15.0
"""Limits of a clip's length."""
_SPEECH_ABOVE, _PAUSE_BELOW = 0.5, 0.35
"""Probabilities at which speech begins and ends, as in Silero's own code."""
_SHORTEST_SPEECH_S = 0.1
_SHORTEST_PAUSE_S = 0.2
"""Shorter pauses are never cut: the closure of a stop consonant within a word lasts up to 0.15 s."""
_SENTENCE_PAUSE_S = 0.5
"""A clip of at least ``_ENOUGH_S`` ends here."""
_ENOUGH_S = 2.0
_LONG_PAUSE_S = 1.0
"""Any clip ends here."""
_MARGIN_S = 0.2
"""Pause to keep at each end, at most half of it: quiet sounds begin and end in it."""

Detector = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class Span(NamedTuple):
    """A part of a recording."""

    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        """Length."""
        return self.end_s - self.start_s


def load_detector() -> Callable[[], Detector]:
    """Returns what makes a detector of speech for each recording.

    A detector is a function of successive samples, (frames * :data:`FRAME_SAMPLES`,), at :data:`SPEECH_RATE_HZ`, to the
    probability of speech in each frame, (frames,).

    Raises:
        ConfigError: a package is not installed.
    """
    missing = [name for name in ("onnxruntime", "silero_vad") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"--segment needs uninstalled packages ({', '.join(missing)}): {install_command('segment')}.")
    runtime = importlib.import_module("onnxruntime")
    spec = find_spec("silero_vad")  # not imported: its import sets the number of torch's threads to 1
    model = Path(spec.origin or "" if spec else "").parent / "data" / "silero_vad_16k_sequence.onnx"
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def new_detector() -> Detector:
        state = {"h": np.zeros((1, 1, _STATE_VALUES), np.float32), "c": np.zeros((1, 1, _STATE_VALUES), np.float32)}
        context = np.zeros(_CONTEXT_SAMPLES, np.float32)

        def detect(samples: NDArray[np.float32]) -> NDArray[np.float32]:
            nonlocal context
            frames = samples.reshape(-1, FRAME_SAMPLES)
            contexts = np.vstack([context, frames[:-1, -_CONTEXT_SAMPLES:]])
            context = frames[-1, -_CONTEXT_SAMPLES:].copy()
            inputs = {"input": np.hstack([contexts, frames]), **state}
            probabilities, state["h"], state["c"] = session.run(["speech_probs", "hn", "cn"], inputs)
            return np.asarray(probabilities, np.float32).reshape(-1)

        return detect

    return new_detector


def speech_probabilities(blocks: Iterable[NDArray[np.float32]], detect: Detector) -> NDArray[np.float32]:
    """Returns the probability of speech in each frame of :data:`FRAME_S`, (frames,); the last one may be incomplete.

    Args:
        blocks: the recording at :data:`SPEECH_RATE_HZ`, (T,) each.
        detect: a new detector.
    """
    probabilities, rest = [np.zeros(0, np.float32)], np.zeros(0, np.float32)
    for block in blocks:
        samples = np.concatenate([rest, np.clip(block, -1, 1)])
        whole = len(samples) // FRAME_SAMPLES * FRAME_SAMPLES
        if whole:
            probabilities.append(detect(samples[:whole]))
        rest = samples[whole:]
    if len(rest):
        probabilities.append(detect(np.pad(rest, (0, FRAME_SAMPLES - len(rest)))))
    return np.concatenate(probabilities)


def speech_share(probabilities: NDArray[np.float32], span: Span) -> float:
    """Returns the share of a span that is speech, given (frames,)."""
    frames = probabilities[int(span.start_s / FRAME_S) : int(span.end_s / FRAME_S) + 1]
    return float((frames >= _SPEECH_ABOVE).mean()) if len(frames) else 0.0


def find_clips(probabilities: NDArray[np.float32], longest_s: float = LONGEST_S) -> list[Span]:
    """Divides a recording into clips that begin and end in pauses, in their order.

    A clip is longer than ``longest_s`` only if it has no pause, and shorter than :data:`SHORTEST_S` only if it stands
    alone between long pauses.

    Args:
        probabilities: of speech, (frames,).
        longest_s: preferred limit.
    """
    groups: list[list[Span]] = []
    group: list[Span] = []
    for run in _runs(probabilities):
        if group and _is_complete(group, run.start_s - group[-1].end_s):
            groups.append(group)
            group = []
        group.append(run)
        while len(group) > 1 and group[-1].end_s - group[0].start_s + 2 * _MARGIN_S > longest_s:
            cut = _longest_pause(group)
            groups.append(group[:cut])
            group = group[cut:]
    groups += [group] if group else []
    if not groups:
        return []
    total_s = len(probabilities) * FRAME_S
    spans = [Span(group[0].start_s, group[-1].end_s) for group in groups]
    borders_s = [0.0, *((left.end_s + right.start_s) / 2 for left, right in pairwise(spans)), total_s]
    return [
        Span(max(span.start_s - _MARGIN_S, before_s), min(span.end_s + _MARGIN_S, after_s))
        for span, (before_s, after_s) in zip(spans, pairwise(borders_s), strict=True)
    ]


def _is_complete(group: Sequence[Span], pause_s: float) -> bool:
    duration_s = group[-1].end_s - group[0].start_s
    return pause_s >= _LONG_PAUSE_S or (pause_s >= _SENTENCE_PAUSE_S and duration_s >= _ENOUGH_S)


def _longest_pause(group: Sequence[Span]) -> int:
    """Returns the index of the run after the longest pause that leaves enough speech on its left, if one does."""
    pauses_s = [right.start_s - left.end_s for left, right in pairwise(group)]
    enough = [left.end_s - group[0].start_s >= SHORTEST_S for left in group[:-1]]
    return 1 + max(range(len(pauses_s)), key=lambda index: (enough[index], pauses_s[index]))


def _runs(probabilities: NDArray[np.float32]) -> list[Span]:
    """Returns the stretches of speech without a pause that may be cut."""
    runs: list[Span] = []
    start: int | None = None
    for frame, probability in enumerate([*probabilities.tolist(), 0.0]):
        if start is None and probability >= _SPEECH_ABOVE:
            start = frame
        elif start is not None and probability < _PAUSE_BELOW:
            if (frame - start) * FRAME_S >= _SHORTEST_SPEECH_S:
                _append(runs, Span(start * FRAME_S, frame * FRAME_S))
            start = None
    return runs


def _append(runs: list[Span], run: Span) -> None:
    if runs and run.start_s - runs[-1].end_s < _SHORTEST_PAUSE_S:
        run = Span(runs.pop().start_s, run.end_s)
    runs.append(run)
