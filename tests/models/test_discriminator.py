"""Discriminator sizes, parameter names and shapes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from vits_trainer.config.architecture import DiscriminatorShape
from vits_trainer.models.discriminator import (
    Discriminator,
    DiscriminatorOutput,
    PeriodDiscriminator,
    ScaleDiscriminator,
    SpectrogramDiscriminator,
    load_discriminator,
    save_discriminator,
)
from vits_trainer.models.parameter_names import discriminator_name
from vits_trainer.utils.errors import ConfigError

GOLDEN = Path(__file__).parents[1] / "golden" / "single_sdp.json"


def full_size() -> Discriminator:
    with torch.device("meta"):
        return Discriminator()


def test_full_size_has_the_original_parameters():
    discriminator = full_size()
    shapes = {name: list(p.shape) for name, p in discriminator.named_parameters()}
    original = json.loads(GOLDEN.read_text())["discriminator_shapes"]
    assert shapes == {discriminator_name(name): shape for name, shape in original.items()}
    assert 46.6e6 < sum(p.numel() for p in discriminator.parameters()) < 46.8e6


def test_one_scale_and_five_period_discriminators():
    scale, *periods = full_size().discriminators
    assert isinstance(scale, ScaleDiscriminator)
    assert [p.period for p in periods] == [2, 3, 5, 7, 11]


def test_scale_convolutions_match_the_paper():
    scale = full_size().discriminators[0]
    assert [conv.groups for conv in scale.convs] == [1, 4, 16, 64, 256, 1]
    assert [conv.stride[0] for conv in scale.convs] == [1, 4, 4, 4, 4, 1]
    assert [conv.kernel_size[0] for conv in scale.convs] == [15, 41, 41, 41, 41, 5]


def test_divided_widths_keep_valid_groups():
    scale = Discriminator(DiscriminatorShape((2,), 4)).discriminators[0]
    assert [conv.out_channels for conv in scale.convs] == [4, 16, 64, 256, 256, 256]
    assert [conv.groups for conv in scale.convs] == [1, 4, 16, 64, 256, 1]
    small = Discriminator(DiscriminatorShape((2,), 8)).discriminators[0]
    assert [conv.groups for conv in small.convs] == [1, 2, 8, 32, 128, 1]


def test_output_has_scores_and_feature_maps_of_each_layer():
    output = Discriminator(DiscriminatorShape((2, 3), 8))(torch.randn(2, 1, 512))
    assert [len(layers) for layers in output.feature_maps] == [7, 6, 6]
    for scores, layers in zip(output.scores, output.feature_maps, strict=True):
        assert torch.equal(scores, layers[-1].flatten(1))
    assert output.scores[0].shape == (2, 2)  # 512 samples / 4^4


def test_split_separates_the_first_clips_from_the_rest():
    torch.manual_seed(0)
    discriminator = Discriminator(DiscriminatorShape((2, 3), 8)).eval()
    first, second = torch.randn(2, 1, 512), torch.randn(3, 1, 512)
    whole = discriminator(torch.cat([first, second]))
    for half, alone in zip(whole.split(2), (discriminator(first), discriminator(second)), strict=True):
        assert isinstance(half, DiscriminatorOutput)
        for actual, expected in zip(half.scores, alone.scores, strict=True):
            torch.testing.assert_close(actual, expected)
        for actual, expected in zip(half.feature_maps, alone.feature_maps, strict=True):
            assert [layer.shape for layer in actual] == [layer.shape for layer in expected]


def test_period_discriminator_reflects_the_end_to_whole_rows():
    torch.manual_seed(0)
    period = PeriodDiscriminator(3, 8)
    seen = []
    period.convs[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    period(torch.arange(7.0)[None, None])
    assert seen[0].tolist() == [[[[0, 1, 2], [3, 4, 5], [6, 5, 4]]]]
    period(torch.arange(6.0)[None, None])
    assert seen[1].tolist() == [[[[0, 1, 2], [3, 4, 5]]]]


def test_first_layer_is_weight_normed_convolution_with_leaky_relu_of_slope_0_1():
    torch.manual_seed(0)
    scale = ScaleDiscriminator(8)
    waveform = torch.randn(1, 1, 64)
    norm, direction = scale.convs[0].parametrizations.weight.original0, scale.convs[0].parametrizations.weight.original1
    weight = norm * direction / direction.flatten(1).norm(dim=1)[:, None, None]
    linear = nn.functional.conv1d(waveform, weight, scale.convs[0].bias, padding=7)
    torch.testing.assert_close(scale(waveform)[0], torch.maximum(linear, 0.1 * linear))
    assert not torch.allclose(scale(waveform)[0], F.relu(linear))


RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))


def test_spectrogram_discriminators_have_the_papers_size() -> None:
    with torch.device("meta"):
        discriminators = [SpectrogramDiscriminator(*resolution, 1) for resolution in RESOLUTIONS]
    assert 0.28e6 < sum(p.numel() for d in discriminators for p in d.parameters()) < 0.29e6


def test_magnitudes_are_those_of_an_fft() -> None:
    samples = torch.randn(1, 1, 4096, dtype=torch.float64)
    for n_fft, hop, window in RESOLUTIONS:
        magnitudes = SpectrogramDiscriminator(n_fft, hop, window, 16).magnitudes(samples)[0].numpy()
        reflected = np.pad(samples[0, 0].numpy(), (n_fft - hop) // 2, mode="reflect")
        before = (n_fft - window) // 2
        hann = np.pad(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window), (before, n_fft - window - before))
        frames = np.lib.stride_tricks.sliding_window_view(reflected, n_fft)[::hop]
        expected = np.abs(np.fft.rfft(frames * hann)).T
        np.testing.assert_allclose(magnitudes, np.sqrt(expected**2 + 1e-6), rtol=1e-9)


def test_spectrogram_discriminators_are_added_to_known_ones_and_saved(tmp_path: Path) -> None:
    discriminator = Discriminator(DiscriminatorShape((2,), 16))
    waveform = torch.randn(2, 1, 4096)
    before = discriminator(waveform).scores
    assert discriminator.add_resolutions(RESOLUTIONS[:2])
    assert not discriminator.add_resolutions(RESOLUTIONS[:2])
    after = discriminator(waveform).scores
    assert [score.shape[0] for score in after] == [2] * 4
    assert all(map(torch.equal, before, after))
    save_discriminator(discriminator, tmp_path / "discriminator.safetensors")
    loaded = load_discriminator(tmp_path / "discriminator.safetensors")
    assert loaded.shape == discriminator.shape
    assert all(map(torch.equal, after, loaded(waveform).scores))


def test_file_of_an_earlier_version_has_no_spectrogram_discriminators(tmp_path: Path) -> None:
    discriminator = Discriminator(DiscriminatorShape((2,), 16))
    path = tmp_path / "discriminator.safetensors"
    shape = json.dumps({"periods": [2], "channels_divisor": 16})
    save_file(dict(discriminator.state_dict()), path, metadata={"shape": shape})
    assert load_discriminator(path).shape == discriminator.shape


@pytest.mark.parametrize("resolution", [(8, 2, 4), (1024, 700, 600), (1024, 121, 600), (512, 50, 600), (9000, 2, 4)])
def test_invalid_resolutions_are_rejected(resolution: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match=r"--discriminator\.resolutions \["):
        DiscriminatorShape(resolutions=(resolution,))
