"""A conventional training update, used only as the benchmark's reference.

Eager mode, transformers' own modules, alignment on the CPU by the PyPI package, four discriminator calls, and losses
read back to the host in every update.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vits_trainer.config.tools import BenchmarkConfig
from vits_trainer.config.train import LossWeights
from vits_trainer.data.dataset import Batch
from vits_trainer.diagnostics.benchmark import networks, workload
from vits_trainer.distributed.runtime import Runtime
from vits_trainer.models import pretrained
from vits_trainer.models.discriminator import Discriminator
from vits_trainer.models.generator import Generator
from vits_trainer.models.spectrogram import frame_mask, log_mel, spectrogram
from vits_trainer.utils.errors import InstallationError

SEGMENT_FRAMES = 32
WEIGHTS = LossWeights()


def reference_update(config: BenchmarkConfig, runtime: Runtime) -> Callable[[], dict[str, float]]:
    """Returns a function that runs one reference update on separate networks with the same initial weights as ours.

    Raises:
        InstallationError: the PyPI package monotonic-alignment-search is not installed.
    """
    try:
        from monotonic_alignment_search import maximum_path  # noqa: PLC0415 - only for this comparison
    except ImportError as error:
        raise InstallationError(
            "--compare reference needs the package monotonic-alignment-search: pip install monotonic-alignment-search."
        ) from error
    generator, discriminator = networks(config)
    generator.to(runtime.device)
    discriminator.to(runtime.device)
    options = {"lr": 2e-5, "betas": (0.8, 0.99), "eps": 1e-9, "foreach": True}
    optimizer_g = torch.optim.AdamW(generator.parameters(), **options)  # type: ignore[arg-type]
    optimizer_d = torch.optim.AdamW(discriminator.parameters(), **options)  # type: ignore[arg-type]
    batch = workload(config)

    def update() -> dict[str, float]:
        losses = {}
        moved = batch.to(runtime.device)
        with runtime.autocast():
            fake, real, terms, mels = _synthesize(generator, moved, maximum_path)
            real_scores, fake_scores = discriminator(real), discriminator(fake.detach())
        score_pairs = zip(real_scores.scores, fake_scores.scores, strict=True)
        loss = torch.stack([(1 - r.float()).square().mean() + f.float().square().mean() for r, f in score_pairs]).sum()
        optimizer_d.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(discriminator.parameters(), 1000)
        optimizer_d.step()
        losses["discriminator"] = loss.item()
        with runtime.autocast():
            terms |= _discriminator_terms(discriminator, real, fake)
        terms["mel"] = F.l1_loss(*mels)
        loss = torch.stack([getattr(WEIGHTS, name) * term for name, term in terms.items()]).sum()
        optimizer_g.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(generator.parameters(), 1000)
        optimizer_g.step()
        return losses | {name: term.item() for name, term in terms.items()}

    return update


def _synthesize(
    generator: Generator, batch: Batch, maximum_path: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor, dict[str, Tensor], tuple[Tensor, Tensor]]:
    """Returns generated and recorded segments, the losses without discriminators, and both mel spectrograms."""
    model = generator.model
    spec = pretrained.audio_spec(model.config)
    magnitude = spectrogram(batch.waveform, batch.frame_lengths, spec)
    text_mask, frames = (
        frame_mask(batch.token_lengths, batch.tokens.shape[1]),
        frame_mask(batch.frame_lengths, magnitude.shape[2]),
    )
    text = model.text_encoder(
        batch.tokens, padding_mask=text_mask.transpose(1, 2), attention_mask=text_mask[:, 0].long()
    )
    mean, log_std = text.prior_means.transpose(1, 2), text.prior_log_variances.transpose(1, 2)
    latents, _, posterior_log_std = model.posterior_encoder(magnitude, frames)
    prior_latents = model.flow(latents, frames)
    with torch.no_grad():
        precision = torch.exp(-2 * log_std)
        scores = torch.sum(-0.9189385 - log_std, [1], keepdim=True)
        scores = scores + torch.matmul(-0.5 * prior_latents.square().transpose(1, 2), precision)
        scores = scores + torch.matmul(prior_latents.transpose(1, 2), mean * precision)
        scores = scores + torch.sum(-0.5 * mean.square() * precision, [1], keepdim=True)
        mask = text_mask.transpose(1, 2) * frames
        path = maximum_path(scores.float().transpose(1, 2).contiguous(), mask).to(scores.dtype)
    durations = path.sum(2)[:, None]
    hidden = text.last_hidden_state.transpose(1, 2)
    duration = model.duration_predictor(hidden, text_mask, durations=durations.float())
    mean, log_std = torch.matmul(mean, path), torch.matmul(log_std, path)
    z, m, s, q = prior_latents.float(), mean.float(), log_std.float(), posterior_log_std.float()
    kl = ((s - q - 0.5 + 0.5 * (z - m).square() * torch.exp(-2 * s)) * frames).sum() / frames.sum()
    starts = (torch.rand(len(latents)) * (batch.frame_lengths.cpu() - SEGMENT_FRAMES + 1)).long().to(latents.device)
    fake = model.decoder(_slices(latents, starts, SEGMENT_FRAMES))
    real = _slices(batch.waveform[:, None], starts * spec.hop, SEGMENT_FRAMES * spec.hop)
    target_mel = _slices(log_mel(magnitude, spec), starts, SEGMENT_FRAMES)
    lengths = torch.full_like(batch.frame_lengths, SEGMENT_FRAMES)
    fake_mel = log_mel(spectrogram(fake[:, 0].float(), lengths, spec), spec)
    terms = {"duration": (duration / text_mask.sum()).sum(), "kl": kl}
    return fake, real, terms, (fake_mel, target_mel)


def _discriminator_terms(discriminator: Discriminator, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    real_output, fake_output = discriminator(real), discriminator(fake)
    matching = [
        (r.detach().float() - f.float()).abs().mean()
        for real_layers, fake_layers in zip(real_output.feature_maps, fake_output.feature_maps, strict=True)
        for r, f in zip(real_layers, fake_layers, strict=True)
    ]
    adversarial = [(1 - score.float()).square().mean() for score in fake_output.scores]
    return {"adversarial": torch.stack(adversarial).sum(), "feature_matching": 2 * torch.stack(matching).sum()}


def _slices(values: Tensor, starts: Tensor, size: int) -> Tensor:
    segments = torch.zeros_like(values[:, :, :size])
    for row in range(len(values)):
        segments[row] = values[row, :, starts[row] : starts[row] + size]
    return segments
