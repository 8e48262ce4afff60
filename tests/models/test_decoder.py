"""The decoder's forward pass and its mixed precision."""

from dataclasses import replace

import pytest
import torch

from tests.support.models import SMALL, new_voice
from vits_trainer.models.decoder import FLOAT32_STAGES, autocast_modules, decode

SPEAKERS = ("ada", "ben")


@pytest.mark.parametrize("speakers", [(), SPEAKERS], ids=["one speaker", "two speakers"])
def test_decode_equals_transformers_in_float32(speakers: tuple[str, ...]) -> None:
    model = new_voice(*speakers)
    latents = torch.randn(2, 32, 9, requires_grad=True)
    speaker = model.embed_speaker(torch.tensor([0, 1]))[:, :, None].detach() if speakers else None
    expected, found = model.decoder(latents, speaker), decode(model.decoder, latents, speaker)
    assert torch.equal(expected, found)
    gradients = [torch.autograd.grad(waveform.square().sum(), latents)[0] for waveform in (expected, found)]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("rates", [(8, 8, 4), (4, 4), (4,)], ids=str)
def test_last_stages_and_residual_streams_stay_in_float32(rates: tuple[int, ...]) -> None:
    kernels = tuple(2 * rate for rate in rates)
    decoder = new_voice(architecture=replace(SMALL, upsample_rates=rates, upsample_kernel_sizes=kernels)).decoder
    dtypes: dict[str, torch.dtype] = {}
    for name, module in decoder.named_modules():
        if isinstance(module, torch.nn.Conv1d | torch.nn.ConvTranspose1d):
            module.register_forward_hook(lambda _, __, output, name=name: dtypes.__setitem__(name, output.dtype))
    streams = []
    for block in decoder.resblocks:
        block.convs1[0].register_forward_pre_hook(lambda _, inputs: streams.append(inputs[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        waveform = decode(decoder, torch.randn(1, 32, 5), None)
    assert waveform.dtype == torch.float32
    assert set(streams) == {torch.float32}
    narrow = {name for name, dtype in dtypes.items() if dtype == torch.bfloat16}
    cast_together = set(autocast_modules(decoder).modules())
    assert narrow == {name for name, module in decoder.named_modules() if name in dtypes and module in cast_together}
    assert ("upsampler.0" in narrow) == (len(rates) > FLOAT32_STAGES)
    assert f"upsampler.{len(rates) - 1}" in dtypes.keys() - narrow
