"""How well a voice is understood: character error rates of texts that it was not trained on."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from vits_trainer.data.preparation.espeak_corpus import SENTENCES
from vits_trainer.evaluation.recognizers import choose_judge
from vits_trainer.evaluation.speech_metrics import SpeechMetrics
from vits_trainer.evaluation.synthesis import SynthesisOptions, Voice
from vits_trainer.evaluation.transcripts import spoken_form
from vits_trainer.text.languages import is_english

logger = logging.getLogger(__name__)

_MOST_TEXTS = 32
"""Synthesis and recognition of a text take about a second on a CPU."""
_ENOUGH_PASSES, _MOST_SEEDS = 20, 5


@dataclass(frozen=True)
class ListeningTest:
    """Texts that a speech recognizer hears from the voice before and after training."""

    texts: Sequence[str]
    speakers: Sequence[str]
    """Of each text."""
    seeds: Sequence[int]
    """Each text is spoken with each of them."""
    metrics: SpeechMetrics

    @classmethod
    def create(
        cls, asr: str, language: str | None, rate_hz: int, held_out: Sequence[tuple[str, str]], seed: int
    ) -> "ListeningTest | None":
        """Chooses texts and recognizer; returns None, and logs why, if there is no recognizer or no text.

        Args:
            asr: value of ``--asr``.
            language: of the voice.
            rate_hz: of the voice.
            held_out: texts that the voice was not trained on, with their speakers. Without any, an English voice
                speaks the sentences of the built-in corpus.
            seed: of the synthesis.

        Raises:
            ConfigError: the recognizer cannot be loaded.
        """
        judge = choose_judge(asr, language)
        clips = [clip for clip in held_out if spoken_form(clip[0], language)]
        if not clips and is_english(language):
            clips = [(text, "") for text in SENTENCES.splitlines()]
        reason = judge.reason or ("" if clips else "no clip is held out")
        if reason:
            logger.info("The mel loss alone judges the new voice, not the character error rate: %s.", reason)
            return None
        clips = clips[:_MOST_TEXTS]
        seeds = range(seed, seed + min(_MOST_SEEDS, -(-_ENOUGH_PASSES // len(clips))))
        logger.info("%s listens to %d texts, before and after training.", judge.recognizer, len(clips))
        metrics = SpeechMetrics(["cer"], rate_hz, str(judge.recognizer), language)
        return cls([text for text, _ in clips], [speaker for _, speaker in clips], seeds, metrics)

    def error_rates(self, name_or_dir: str) -> list[list[float]]:
        """Returns the character error rates of a voice, (texts, seeds), each at most 1.

        Raises:
            ModelError: the voice cannot be loaded.
        """
        voice = Voice(name_or_dir)
        has_speakers = voice.model.config.num_speakers > 1
        return [
            [self._error_rate(voice, text, speaker if has_speakers and speaker else None, seed) for seed in self.seeds]
            for text, speaker in zip(self.texts, self.speakers, strict=True)
        ]

    def _error_rate(self, voice: Voice, text: str, speaker: str | None, seed: int) -> float:
        spoken = voice.synthesize(text, SynthesisOptions(speaker=speaker, seed=seed))
        return self.metrics.measure(text, spoken, spoken).metrics["cer"]
