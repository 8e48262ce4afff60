"""Sizes that go together at each sampling rate, from the recipe to a voice that speaks and is tuned again."""


import pytest
import torch
from transformers import VitsConfig, VitsModel

from vits_trainer.config.architecture import Architecture
from vits_trainer.config.framing import AudioSpec, Framing, check_segment
from vits_trainer.config.parser import parse
from vits_trainer.config.train import TrainConfig
from vits_trainer.models.spectrogram import mel_filterbank
from vits_trainer.utils.errors import ConfigError

RECIPES = {"from_scratch": 16000, "from_scratch_22k": 22050, "from_scratch_24k": 24000, "from_scratch_44k": 44100}

def refusal(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse("train_vits", TrainConfig, ["--model_name", "null", *words])
    return str(caught.value)


def flags_of(message: str) -> list[str]:
    """The flags that a message recommends."""
    return message.partition("Good for this rate: ")[2].partition(" (hop")[0].split()


@pytest.mark.parametrize(("recipe", "rate_hz"), RECIPES.items())
def test_recipe_of_each_rate_has_the_sizes_for_it(recipe: str, rate_hz: int) -> None:
    architecture = parse("train_vits", TrainConfig, ["--config", recipe]).architecture
    assert architecture is not None
    assert architecture.sampling_rate == rate_hz
    good = Framing.for_rate(rate_hz)
    assert 2 * (architecture.spectrogram_bins - 1) == good.n_fft
    assert architecture.upsample_rates == good.upsample_rates
    assert architecture.upsample_kernel_sizes == good.upsample_kernel_sizes
    # No mel band without a bin, which would be silent for ever.
    spec = AudioSpec(rate_hz, good.n_fft, good.n_fft, good.hop)
    assert (mel_filterbank(spec) > 0).any(1).all()
    assert 0.3 < 32 * good.hop / rate_hz < 0.6


@pytest.mark.parametrize("rate_hz", [8000, 11025, 12800, 16000, 22050, 24000, 32000, 32001, 44100, 48000])
def test_every_rate_has_sizes_that_are_taken(rate_hz: int) -> None:
    good = Framing.for_rate(rate_hz)
    Architecture(
        sampling_rate=rate_hz,
        spectrogram_bins=good.n_fft // 2 + 1,
        upsample_rates=good.upsample_rates,
        upsample_kernel_sizes=good.upsample_kernel_sizes,
    ).check()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("sampling_rate 44100", "a frame 5.8 ms, where 8 to 20 are good"),
        ("sampling_rate 8000", "a frame 32.0 ms"),
        ("upsample_rates [8,8,2]", "each rate has its kernel"),
        ("upsample_kernel_sizes [16,16,4,5]", "larger by an even number"),
        ("upsample_kernel_sizes [16,16,4,0]", "larger by an even number"),
        ("spectrogram_bins 129", "n_fft of 256 samples with a hop of 256"),
        ("spectrogram_bins 80", "513 bins are 4 hops"),
    ],
)
def test_wrong_sizes_are_refused_with_those_that_are_taken(flags: str, named: str) -> None:
    words = [f"--architecture.{flags.split()[0]}", flags.split()[1]]
    message = refusal(*words)
    assert named in message
    # Following the advice leads to a voice.
    advised = parse("train_vits", TrainConfig, ["--model_name", "null", *words, *flags_of(message)])
    assert advised.architecture is not None


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("upsample_initial_channel 100", "a multiple of 16"),
        ("hidden_size 191", "the flow halves it"),
        ("resblock_kernel_sizes [3]", "which are 3"),
    ],
)
def test_sizes_that_nothing_else_bounds_are_refused(flags: str, named: str) -> None:
    assert named in refusal(f"--architecture.{flags.split()[0]}", flags.split()[1])


def test_segment_is_at_least_a_window() -> None:
    check_segment(4, 16000, 1024, 256)
    with pytest.raises(ConfigError, match=r"48 ms are shorter than one window .* Give 4 or more"):
        check_segment(3, 16000, 1024, 256)


@pytest.mark.parametrize("kernel", [2, 3, 4, 6])
def test_kernels_that_are_taken_give_whole_frames(kernel: int) -> None:
    """transformers' decoder itself: as many samples as frames times the hop if and only if we take the kernel."""
    sizes = {"upsample_rates": [8, 8, 2, 2], "upsample_kernel_sizes": [16, 16, 4, kernel]}
    decoder = VitsModel(VitsConfig(vocab_size=4, upsample_initial_channel=16, **sizes)).decoder
    with torch.no_grad():
        samples = decoder(torch.zeros(1, 192, 5)).shape[-1]
    flags = ["--architecture.upsample_kernel_sizes", f"[16,16,4,{kernel}]"]
    if samples == 5 * 256:
        assert parse("train_vits", TrainConfig, ["--model_name", "null", *flags]).architecture is not None
    else:
        assert "larger by an even number" in refusal(*flags)
