"""The same without a recognizer: ``python -m experiments.segmentation_by_voice DATASET [--voice FOLDER] [--clips N]``.

Joins clips as experiments.segmentation does, and gives each cut clip the words up to the end that the alignment search
of a voice prefers (posterior latents against the prior of the text). Two starts: the word after the end found for the
clip before, and the word that is right.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.segmentation import join, read_clips
from vits_trainer.data.segmentation.reading import SPEECH_RATE_HZ, SpanReader, open_recording, speech_blocks, to_speech
from vits_trainer.data.segmentation.speech import find_clips, load_detector, speech_probabilities
from vits_trainer.models import alignment
from vits_trainer.models.encoders import encode_text, flow, sample_posterior
from vits_trainer.models.pretrained import audio_spec, load_model
from vits_trainer.models.spectrogram import frame_mask, spectrogram
from vits_trainer.text.tokenizer import encode, load_tokenizer
from vits_trainer.utils.packaged import BASE_VOICE

WINDOW_LETTERS_PER_S, WINDOW_LETTERS = 25, 40


class Aligner:
    """Finds the end of a clip's text by the alignment search of a voice for 16 kHz."""

    def __init__(self, voice: str) -> None:
        self.model = load_model(voice).eval()
        self.tokenizer = load_tokenizer(voice)
        self.spec = audio_spec(self.model.config)
        assert self.spec.sampling_rate == SPEECH_RATE_HZ

    @torch.inference_mode()
    def words_spoken(self, samples: NDArray[np.float32], words: list[str]) -> int:
        """Returns how many of ``words`` the samples, (T,), contain, if they begin with the first."""
        ends = [len(encode(self.tokenizer, " ".join(words[: count + 1]))) for count in range(len(words))]
        ids = torch.from_numpy(encode(self.tokenizer, " ".join(words)))
        frames = torch.tensor([len(samples) // self.spec.hop])
        magnitudes = spectrogram(torch.from_numpy(samples)[None], frames, self.spec)
        mask, tokens = frame_mask(frames, magnitudes.shape[2]), torch.tensor([len(ids)])
        _, mean, log_std = encode_text(self.model.text_encoder, ids[None], frame_mask(tokens, len(ids)))
        sample, _ = sample_posterior(self.model.posterior_encoder, magnitudes, mask, None, torch.zeros_like)
        scores = alignment.log_likelihoods(flow(self.model.flow, sample, mask, None), mean, log_std)[0].numpy()
        best = np.full(scores.shape[1], -np.inf)
        best[0] = scores[0, 0]
        for frame in scores[1:]:
            best = np.maximum(best, np.concatenate([[-np.inf], best[:-1]])) + frame
        return 1 + int(best[np.minimum(ends, len(best)) - 1].argmax())


def measure(asked: argparse.Namespace, folder: Path) -> None:
    clips = read_clips(asked.dataset, asked.clips)
    spans = join(clips, folder / "joined.wav")
    words = [(word, row) for row, (text, _) in enumerate(clips) for word in text.split()]
    with open_recording(folder / "joined.wav") as file:
        cut = find_clips(speech_probabilities(speech_blocks(file), load_detector()()))
    aligner = Aligner(asked.voice)
    whole = [span for span in cut if any(abs(span.start_s - start) < 0.5 for start, _ in spans)]
    for name, known_start in (("start found before", False), ("right start", True)):
        position = right = placed = exact = 0
        with open_recording(folder / "joined.wav") as file:
            reader = SpanReader(file)
            for span in cut:
                samples = to_speech(reader.read_file(*span), 60)
                rows = [row for row, (begin, end) in enumerate(spans) if begin < span.end_s and end > span.start_s]
                own = [index for index, (_, row) in enumerate(words) if row in rows]
                if known_start and span in whole:
                    position = own[0]
                size = int(WINDOW_LETTERS_PER_S * span.duration_s + WINDOW_LETTERS)
                window = " ".join(word for word, _ in words[position:])[:size].split()
                if not window:
                    break
                count = aligner.words_spoken(samples, window)
                placed += count
                right += sum(words[index][1] in rows for index in range(position, position + count))
                exact += bool(own) and position + count - 1 == own[-1]
                position += count
        share = 100 * right / max(1, placed)
        print(f"| {name} | {len(cut)} | {exact} | {placed} of {len(words)} | {share:.1f} % |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--voice", default=str(BASE_VOICE))
    parser.add_argument("--clips", type=int, default=0)
    with tempfile.TemporaryDirectory() as place:
        measure(parser.parse_args(), Path(place))
