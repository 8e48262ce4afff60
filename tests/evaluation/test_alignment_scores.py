"""Scores of alignments, compared with all alignments of short clips and with the generator's own."""

from itertools import combinations

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from tests.support.audio import voice
from tests.support.random_voice import TINY
from vits_trainer.data.audio import to_pcm16
from vits_trainer.evaluation.alignment_scores import NO_ALIGNMENT, Aligner, _best_path, _EncodedTexts, _other_texts
from vits_trainer.evaluation.synthesis import Voice
from vits_trainer.models.generator import Generator
from vits_trainer.models.initialization import new_model
from vits_trainer.models.pretrained import load_model
from vits_trainer.models.spectrogram import spectrogram
from vits_trainer.text.tokenizer import build_tokenizer, encode
from vits_trainer.utils.errors import DataError
from vits_trainer.utils.packaged import BASE_VOICE

TEXTS = ("silav dinya", "ez baş im", "çawa yî", "dinya", "baş", "silav", "ez im baş dinya")


@pytest.fixture(scope="module")
def aligner() -> Aligner:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(TEXTS)
    model = new_model(TINY, tokenizer, ["a", "b"], 0.0)
    with torch.no_grad():
        model.text_encoder.project.weight.mul_(3)
        model.embed_speaker.weight.mul_(3)
    return Aligner(model, tokenizer)


def recordings() -> list[np.ndarray]:
    return [to_pcm16(voice(0.6 + 0.13 * n, 16000, 90 + 17 * n)) for n in range(len(TEXTS))]


def test_the_log_likelihood_is_that_of_the_best_of_all_alignments() -> None:
    torch.manual_seed(1)
    frames, tokens = torch.tensor([7, 5]), torch.tensor([3, 4])
    latents, mean, log_std = torch.randn(2, 4, 7), torch.randn(2, 4, 4), 0.3 * torch.randn(2, 4, 4)
    found, path = _best_path(latents, _EncodedTexts(mean, log_std, tokens), [0, 1], frames)
    for b in range(2):
        t, s = int(frames[b]), int(tokens[b])
        density = Normal(mean[b].T, log_std[b].T.exp())
        each = torch.stack([density.log_prob(latents[b, :, i]).sum(1) for i in range(t)])  # (t, tokens)
        best = -np.inf
        for cuts in combinations(range(1, t), s - 1):
            token_of_frame = np.searchsorted(cuts, np.arange(t), side="right")
            best = max(best, float(each[np.arange(t), token_of_frame].sum()))
        assert float(found[b]) == pytest.approx(best / t, rel=1e-5)
        assert path[b, :t].tolist() == sorted(path[b, :t].tolist())


def test_words_of_a_voices_own_speech_begin_where_it_spoke_them() -> None:
    """Independent of the search: durations that the packaged voice predicted when it spoke."""
    spoken = Voice.load(str(BASE_VOICE))
    aligner = Aligner(load_model(str(BASE_VOICE)), spoken.tokenizer)
    text = "The weather will be warm and sunny tomorrow."
    speech = spoken.speak(text, seed=1)
    found = aligner.timings(text, to_pcm16(speech.samples), "", speech.sampling_rate)
    assert [word.text for word in found.words] == [word.text for word in speech.timings.words]
    errors_s = [abs(a.start_s - b.start_s) for a, b in zip(found.words, speech.timings.words, strict=True)]
    assert np.mean(errors_s) < 0.03
    assert found.tokens[-1].end_s == pytest.approx(len(speech.samples) / speech.sampling_rate, abs=0.02)
    with pytest.raises(DataError, match=r"cannot be aligned with 0\.05 s"):
        aligner.timings(text, to_pcm16(speech.samples[:800]), "", speech.sampling_rate)


def test_the_alignment_is_that_of_the_generator_without_noise(aligner: Aligner) -> None:
    generator = Generator(aligner.model, "posterior", 8)
    generator.noise = torch.zeros_like
    pcm = recordings()[3]
    frames = torch.tensor([len(pcm) // 256])
    tokens = torch.from_numpy(encode(aligner.tokenizer, TEXTS[0]))[None]
    waveform = torch.from_numpy(pcm.astype(np.float32) / 32768)[None, : int(frames) * 256]
    with torch.no_grad():
        out = generator(
            tokens,
            torch.tensor([tokens.shape[1]]),
            spectrogram(waveform, frames, aligner.spec),
            frames,
            torch.tensor([1]),
        )
    log_prob = Normal(out.prior_mean, out.prior_log_std.exp()).log_prob(out.latents)
    durations = torch.bincount(out.token_of_frame[0], minlength=tokens.shape[1])
    (score,) = aligner.scores([TEXTS[0]], [pcm], ["b"], 16000)
    assert score.log_likelihood == pytest.approx(float(log_prob.sum() / frames), rel=1e-4)
    assert score.longest_token_s == pytest.approx(int(durations.max()) * 256 / 16000)
    assert score.hurried_fraction == pytest.approx(float((durations == 1).float().mean()))
    assert np.isnan(score.contrast)  # there is no other text


def test_scores_do_not_depend_on_the_batch_but_for_the_contrast(aligner: Aligner) -> None:
    pcm = recordings()
    together = aligner.scores(TEXTS, pcm, ["a"] * len(pcm), 16000)
    assert np.isfinite(together).all()
    for text, recording, score in zip(TEXTS, pcm, together, strict=True):
        (alone,) = aligner.scores([text], [recording], ["a"], 16000)
        assert alone[:1] + alone[2:] == pytest.approx(score[:1] + score[2:], rel=1e-4)


def test_the_contrast_is_the_difference_to_the_best_other_text_on_the_same_recording(aligner: Aligner) -> None:
    pcm, texts = recordings(), list(TEXTS)
    scores = aligner.scores(texts, pcm, ["a"] * 7, 16000)
    for row in range(7):
        others = [
            aligner.scores([texts[other]], [pcm[row]], ["a"], 16000)[0].log_likelihood
            for other in range(7)
            if other != row
        ]
        assert scores[row].contrast == pytest.approx(scores[row].log_likelihood - max(others), rel=1e-3)


def test_a_single_clip_is_compared_with_more_texts(aligner: Aligner) -> None:
    pcm = recordings()
    together = aligner.scores(TEXTS, pcm, ["a"] * 7, 16000)
    (alone,) = aligner.scores(TEXTS[:1], pcm[:1], ["a"], 16000, [*TEXTS[1:], "???"])
    assert alone == pytest.approx(together[0], rel=1e-3)


def test_equal_texts_are_not_compared_and_the_most_similar_lengths_are() -> None:
    lengths = [5, 9, 5, 30, 8, 7, 20, 6, 10, 11, 12, 50]
    tokens = [np.arange(length) for length in lengths]
    others = _other_texts(tokens, 11)
    assert others[0] == [7, 5, 4, 1, 8, 9, 10, 6]  # not row 2, which has the same tokens
    assert [len(one) for one in others] == [8] * 11
    assert _other_texts(tokens[:1], 1) == [[]]


def test_impossible_texts_have_no_alignment_and_do_not_disturb_others(aligner: Aligner) -> None:
    pcm = recordings()[:3]
    scores = aligner.scores([TEXTS[0], "silav " * 40, "???"], pcm, ["", "", ""], 16000)
    assert scores[0].log_likelihood == pytest.approx(aligner.scores(TEXTS[:1], pcm[:1], [""], 16000)[0].log_likelihood)
    np.testing.assert_equal(scores[1:], [NO_ALIGNMENT] * 2)
    assert aligner.scores([], [], [], 16000) == []
    np.testing.assert_equal(aligner.scores(["ez"], [np.ones(5, np.int16)], [""], 16000), [NO_ALIGNMENT])


def test_speakers_matter_and_unknown_ones_are_the_first(aligner: Aligner) -> None:
    pcm = recordings()[6]
    a, b, unknown = (aligner.scores([TEXTS[1]], [pcm], [name], 16000)[0].log_likelihood for name in ("a", "b", "x"))
    assert a == unknown != b


def test_other_rates_are_resampled(aligner: Aligner) -> None:
    at_16k, at_48k = (to_pcm16(voice(1.0, rate_hz, 130)) for rate_hz in (16000, 48000))
    one, other = (aligner.scores(["baş"], [pcm], ["a"], rate)[0] for pcm, rate in ((at_16k, 16000), (at_48k, 48000)))
    assert one.log_likelihood == pytest.approx(other.log_likelihood, rel=0.02)
