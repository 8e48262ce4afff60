"""How much of the mel loss's gradient does bfloat16 keep, by the part of the decoder that stays in float32?

``python -m experiments.bf16_gradient VOICE DATA_DIR [--clips 8] [--seeds 3] [--own_speech]``

Compares the gradient with respect to the decoder's weights under autocast with that in float32: cosine and ratio of
norms, on a CPU. Decodes posterior latents of recordings; with ``--own_speech``, for voices without a trained posterior
encoder, latents from the texts, compared with the voice's own speech from the same durations and other noise.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vits_trainer.data.dataset import Batch, PreparedClipDataset
from vits_trainer.data.prepared import open_prepared
from vits_trainer.data.sampler import MicroBatchSpec
from vits_trainer.models import decoder, pretrained
from vits_trainer.models.encoders import encode_text, reversed_flow
from vits_trainer.models.generator import Generator
from vits_trainer.models.spectrogram import frame_mask, log_mel, spectrogram
from vits_trainer.text.tokenizer import load_tokenizer

SEGMENT_FRAMES = 32
FRAMES_PER_TOKEN = 3
CPU = torch.device("cpu")


def read_batch(voice: str, data_dir: Path, clips: int) -> tuple[Generator, Batch]:
    generator = Generator(pretrained.load_model(voice), "posterior", SEGMENT_FRAMES).eval()
    spec = pretrained.audio_spec(generator.model.config)
    dataset = PreparedClipDataset(open_prepared(data_dir), load_tokenizer(voice), spec, None)
    return generator, dataset[MicroBatchSpec(tuple(range(clips)), 0, 0, True)].to(CPU)


def of_posterior(generator: Generator, batch: Batch) -> tuple[Tensor, Tensor]:
    """Returns latents of segments and their recordings' mel."""
    spec = pretrained.audio_spec(generator.model.config)
    magnitude = spectrogram(batch.waveform, batch.frame_lengths, spec)
    output = generator(batch.tokens, batch.token_lengths, magnitude, batch.frame_lengths, batch.speaker_ids)
    starts = output.segment_starts[:, None] + torch.arange(SEGMENT_FRAMES)
    index = starts.clamp(max=magnitude.shape[2] - 1)[:, None]
    latents = output.posterior * output.frame_mask
    mel = log_mel(magnitude, spec)
    return tuple(values.gather(2, index.expand(-1, values.shape[1], -1)) for values in (latents, mel))


def of_own_speech(generator: Generator, batch: Batch) -> tuple[Tensor, Tensor]:
    """Returns latents sampled from the prior, and the mel of what other latents of the same text and durations say."""
    model, spec = generator.model, pretrained.audio_spec(generator.model.config)
    _, mean, log_std = encode_text(
        model.text_encoder, batch.tokens, frame_mask(batch.token_lengths, batch.tokens.shape[1])
    )
    mean, log_std = (values.repeat_interleave(FRAMES_PER_TOKEN, 2)[..., :SEGMENT_FRAMES] for values in (mean, log_std))

    def sample() -> Tensor:
        noisy = mean + torch.randn_like(mean) * torch.exp(log_std) * model.config.noise_scale
        return reversed_flow(model.flow, noisy, torch.ones_like(mean[:, :1]), None)

    lengths = torch.full((len(mean),), SEGMENT_FRAMES)
    spoken = decoder.decode(model.decoder, sample(), None)
    return sample(), log_mel(spectrogram(spoken[:, 0], lengths, spec), spec)


def gradient(generator: Generator, latents: Tensor, mel: Tensor, decode: Callable[..., Tensor], narrow: bool) -> Tensor:
    spec, network = pretrained.audio_spec(generator.model.config), generator.model.decoder
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        waveform = decode(network, latents, None)
    lengths = torch.full((len(latents),), SEGMENT_FRAMES)
    decoded = log_mel(spectrogram(waveform[:, 0].float(), lengths, spec), spec)
    (decoded - mel).abs().mean().backward()
    return torch.cat([parameter.grad.flatten().double() for parameter in network.parameters()])


def compare(voice: str, data_dir: Path, clips: int, seeds: int, own_speech: bool) -> None:
    """Prints cosine and ratio of norms for each part of the decoder in float32."""
    generator, batch = read_batch(voice, data_dir, clips)
    stages = generator.model.decoder.num_upsamples
    default = decoder.FLOAT32_STAGES
    for seed in range(seeds):
        torch.manual_seed(seed)
        with torch.no_grad():
            latents, mel = (of_own_speech if own_speech else of_posterior)(generator, batch)
        exact = gradient(generator, latents, mel, decoder.decode, narrow=False)

        def show(
            name: str, decode: Callable[..., Tensor], exact: Tensor = exact, inputs: tuple = (latents, mel)
        ) -> None:
            found = gradient(generator, *inputs, decode, narrow=True)
            cosine, ratio = float(exact @ found / exact.norm() / found.norm()), float(found.norm() / exact.norm())
            print(f"{name:<45} cosine {cosine:.4f}  norm {ratio:.3f}", flush=True)

        print(f"seed {seed}, gradient norm {exact.norm():.3g}")
        show("in float32: nothing", lambda network, *inputs: network(*inputs))
        for count in range(stages + 1):
            decoder.FLOAT32_STAGES = count
            mark = ", the default" if count == default else ""
            show(f"streams, output layer, last {count} stage(s){mark}", decoder.decode)
        decoder.FLOAT32_STAGES = default


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("voice")
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--own_speech", action="store_true")
    compare(**vars(parser.parse_args()))
