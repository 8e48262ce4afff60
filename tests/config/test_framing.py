"""Sizes for each sampling rate: recipes, checks and their suggestions."""


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


def error_message(*args: str) -> str:
    with pytest.raises(ConfigError) as error:
        parse("train_vits", TrainConfig, ["--model_name", "null", *args])
    return str(error.value)


def suggested_flags(message: str) -> list[str]:
    """Returns the flags that a message suggests."""
    return message.partition("Sizes for this rate: ")[2].partition(" (hop")[0].split()


@pytest.mark.parametrize(("recipe", "rate_hz"), RECIPES.items())
def test_recipes_have_the_sizes_for_their_rate(recipe: str, rate_hz: int) -> None:
    architecture = parse("train_vits", TrainConfig, ["--config", recipe]).architecture
    assert architecture is not None
    assert architecture.sampling_rate == rate_hz
    good = Framing.for_rate(rate_hz)
    assert 2 * (architecture.spectrogram_bins - 1) == good.n_fft
    assert architecture.upsample_rates == good.upsample_rates
    assert architecture.upsample_kernel_sizes == good.upsample_kernel_sizes
    # A mel band without a bin would always be silent.
    spec = AudioSpec(rate_hz, good.n_fft, good.n_fft, good.hop)
    assert (mel_filterbank(spec) > 0).any(1).all()
    assert 0.3 < 32 * good.hop / rate_hz < 0.6


@pytest.mark.parametrize("rate_hz", [8000, 11025, 12800, 16000, 22050, 24000, 32000, 32001, 44100, 48000])
def test_suggested_sizes_of_every_rate_are_valid(rate_hz: int) -> None:
    good = Framing.for_rate(rate_hz)
    Architecture(
        sampling_rate=rate_hz,
        spectrogram_bins=good.n_fft // 2 + 1,
        upsample_rates=good.upsample_rates,
        upsample_kernel_sizes=good.upsample_kernel_sizes,
    ).check()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("sampling_rate 44100", "or 5.8 ms, but must be 8 to 20 ms"),
        ("sampling_rate 8000", "or 32.0 ms"),
        ("upsample_rates [8,8,2]", "one kernel size per rate"),
        ("upsample_kernel_sizes [16,16,4,5]", "must be an even number"),
        ("upsample_kernel_sizes [16,16,4,0]", "must be an even number"),
        ("spectrogram_bins 129", "gives n_fft 256 with a hop length of 256"),
        ("spectrogram_bins 80", "513 bins give 4 times"),
    ],
)
def test_invalid_sizes_raise_with_a_suggestion(flags: str, expected: str) -> None:
    args = [f"--architecture.{flags.split()[0]}", flags.split()[1]]
    message = error_message(*args)
    assert expected in message
    suggested = parse("train_vits", TrainConfig, ["--model_name", "null", *args, *suggested_flags(message)])
    assert suggested.architecture is not None


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("upsample_initial_channel 100", "must be a multiple of 16"),
        ("hidden_size 191", "the flow splits it in half"),
        ("resblock_kernel_sizes [3]", "but has 3"),
    ],
)
def test_invalid_sizes_without_a_suggestion_raise(flags: str, expected: str) -> None:
    assert expected in error_message(f"--architecture.{flags.split()[0]}", flags.split()[1])


def test_segment_must_be_at_least_one_window() -> None:
    check_segment(4, 16000, 1024, 256)
    with pytest.raises(ConfigError, match=r"48 ms are shorter than one window .* Must be at least 4"):
        check_segment(3, 16000, 1024, 256)


@pytest.mark.parametrize("kernel", [2, 3, 4, 6])
def test_kernels_are_valid_if_and_only_if_they_give_whole_frames(kernel: int) -> None:
    """A kernel is valid exactly if transformers' decoder returns frames x hop samples with it."""
    sizes = {"upsample_rates": [8, 8, 2, 2], "upsample_kernel_sizes": [16, 16, 4, kernel]}
    decoder = VitsModel(VitsConfig(vocab_size=4, upsample_initial_channel=16, **sizes)).decoder
    with torch.no_grad():
        samples = decoder(torch.zeros(1, 192, 5)).shape[-1]
    flags = ["--architecture.upsample_kernel_sizes", f"[16,16,4,{kernel}]"]
    if samples == 5 * 256:
        assert parse("train_vits", TrainConfig, ["--model_name", "null", *flags]).architecture is not None
    else:
        assert "must be an even number" in error_message(*flags)
