"""The objective: which network gets gradients, and independence of a clip's losses from its batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.audio import voice
from vits_trainer.config.architecture import Architecture, DiscriminatorShape
from vits_trainer.config.framing import AudioSpec
from vits_trainer.config.train import LossWeights
from vits_trainer.data.dataset import Batch, Clip, collate
from vits_trainer.data.sampler import MicroBatchSpec
from vits_trainer.models.discriminator import Discriminator
from vits_trainer.models.generator import Generator
from vits_trainer.models.initialization import new_model
from vits_trainer.models.spectrogram import log_mel, spectrogram
from vits_trainer.text.tokenizer import build_tokenizer
from vits_trainer.training.objective import LossDenominators, Objective, frozen

SPEC = AudioSpec(16000)
SEGMENT = 8
MICRO_BATCH = MicroBatchSpec((), 0, 0, True)
TINY = Architecture(
    hidden_size=16,
    num_hidden_layers=2,
    ffn_dim=32,
    posterior_encoder_num_wavenet_layers=2,
    prior_encoder_num_flows=2,
    prior_encoder_num_wavenet_layers=1,
    duration_predictor_num_flows=2,
    upsample_initial_channel=32,
    resblock_kernel_sizes=(3,),
    resblock_dilation_sizes=((1, 3),),
)


def clip(frames: int, tokens: int, seed: int, speaker: int | None = None) -> Clip:
    pcm = (voice(frames * 256 / 16000, 16000, 110 + 40 * seed) * 32767).astype("int16")
    ids = torch.randint(0, 6, (tokens,), generator=torch.Generator().manual_seed(seed)).numpy()
    return Clip(f"clip-{seed}", ids, pcm, speaker)


LONG, SHORT = clip(30, 9, seed=1), clip(14, 5, seed=2)
SHORTER_THAN_SEGMENT = clip(5, 3, seed=3)


SILENCE = Clip("", np.zeros(1, np.int64), np.zeros(512, np.int16), None)


def batch_of(*clips: Clip) -> Batch:
    return collate(clips, MICRO_BATCH, SPEC, SILENCE).to(torch.device("cpu"))


def build(kind: str = "vits", architecture: Architecture = TINY, speakers: tuple[str, ...] = ()) -> Generator:
    """Returns a generator without noise or dropout; zero weights are perturbed, so that every layer has an effect."""
    torch.manual_seed(0)
    model = new_model(architecture, build_tokenizer(["abcd"]), list(speakers))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    generator = Generator(model, "posterior" if kind == "vits" else "prior", SEGMENT).eval()
    generator.noise = torch.zeros_like
    return generator


def build_discriminator() -> Discriminator:
    torch.manual_seed(1)
    return Discriminator(DiscriminatorShape((2, 3), 8))


def build_objective(kind: str = "vits", weights: LossWeights | None = None) -> Objective:
    return Objective(kind, weights or LossWeights(), SPEC, SEGMENT)


def losses_of(batch: Batch, starts: list[int], kind: str = "vits") -> dict[str, float]:
    generator, discriminator, objective = build(kind), build_discriminator(), build_objective(kind)
    pair = objective.generator_forward(generator, batch, torch.tensor(starts))
    named = {f"g/{name}": loss for name, loss in objective.generator_losses(discriminator, pair).items()}
    if kind == "vits":
        named |= {f"d/{name}": loss for name, loss in objective.discriminator_losses(discriminator, pair).items()}
    return {name: loss.item() for name, loss in named.items()}


def gradients(network: nn.Module) -> dict[str, Tensor | None]:
    return {name: p.grad if p.grad is None else p.grad.clone() for name, p in network.named_parameters()}


def test_trap_4_generator_losses_give_the_discriminator_no_gradient():
    generator, discriminator, objective = build(), build_discriminator(), build_objective()
    pair = objective.generator_forward(generator, batch_of(LONG, SHORT))
    with frozen(discriminator):
        objective.generator_losses(discriminator, pair)["total"].backward()
    assert all(gradient is None for gradient in gradients(discriminator).values())
    assert all(parameter.requires_grad for parameter in discriminator.parameters())


def test_trap_4_generator_losses_keep_the_discriminators_accumulated_gradient():
    generator, discriminator, objective = build(), build_discriminator(), build_objective()
    reference = build_discriminator()
    for batch in (batch_of(LONG, SHORT), batch_of(SHORT, LONG)):
        pair = objective.generator_forward(generator, batch, torch.tensor([0, 0]))
        objective.discriminator_losses(discriminator, pair)["total"].backward()
        objective.discriminator_losses(reference, pair)["total"].backward()
        before = gradients(discriminator)
        with frozen(discriminator):
            objective.generator_losses(discriminator, pair)["total"].backward()
        for name, gradient in gradients(discriminator).items():
            assert torch.equal(gradient, before[name]), name
    for name, gradient in gradients(reference).items():
        torch.testing.assert_close(gradients(discriminator)[name], gradient)


def test_unfrozen_discriminator_gets_a_gradient_from_the_generator_losses():
    generator, discriminator, objective = build(), build_discriminator(), build_objective()
    objective.generator_losses(discriminator, objective.generator_forward(generator, batch_of(SHORT)))[
        "total"
    ].backward()
    assert any(gradient is not None for gradient in gradients(discriminator).values())


def test_frozen_restores_requires_grad_even_after_an_error():
    discriminator = build_discriminator()
    first, *others = discriminator.parameters()
    first.requires_grad_(False)
    with frozen(discriminator):
        assert not any(parameter.requires_grad for parameter in discriminator.parameters())
    with pytest.raises(RuntimeError), frozen(discriminator):
        discriminator(torch.zeros(1, 3, 8))  # one channel is expected
    assert not first.requires_grad
    assert all(parameter.requires_grad for parameter in others)


def test_discriminator_losses_give_the_generator_no_gradient():
    generator, discriminator, objective = build(), build_discriminator(), build_objective()
    pair = objective.generator_forward(generator, batch_of(LONG))
    objective.discriminator_losses(discriminator, pair)["total"].backward()
    assert all(gradient is None for gradient in gradients(generator).values())
    assert all(gradient.abs().sum() > 0 for gradient in gradients(discriminator).values())


@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize("kind", ["vits", "mel"])
def test_gradient_reaches_every_trained_parameter(kind, stochastic):
    architecture = replace(TINY, use_stochastic_duration_prediction=stochastic)
    generator, discriminator, objective = (
        build(kind, architecture, speakers=("a", "b")),
        build_discriminator(),
        build_objective(kind),
    )
    clips = [clip(30, 9, seed=1, speaker=0), clip(14, 5, seed=2, speaker=1)]
    pair = objective.generator_forward(generator, batch_of(*clips))
    objective.generator_losses(discriminator if kind == "vits" else None, pair)["total"].backward()
    trained = {name: p for name, p in generator.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.isfinite().all()] == []
    # a key's bias shifts all scores of a query equally, which softmax ignores
    assert [name for name, p in trained.items() if p.grad.abs().max() == 0 and "k_proj.bias" not in name] == []
    posterior = [p.requires_grad for p in generator.model.posterior_encoder.parameters()]
    assert set(posterior) == {kind == "vits"}
    assert {n for n, p in generator.named_parameters() if not p.requires_grad} == (
        set() if kind == "vits" else {n for n, _ in generator.named_parameters() if ".posterior_encoder." in n}
    )


def test_total_is_the_weighted_sum():
    weights = LossWeights(adversarial=2, feature_matching=3, mel=5, duration=7, kl=11, multi_scale_mel=13)
    objective = build_objective(weights=weights)
    losses = objective.generator_losses(build_discriminator(), objective.generator_forward(build(), batch_of(LONG)))
    by_hand = sum(weight * losses[name].item() for name, weight in vars(weights).items() if weight)
    assert losses["total"].item() == pytest.approx(by_hand, rel=1e-5)
    assert set(losses) == {*vars(weights), "total"} == set(objective.generator_loss_names)


def test_mel_objective_has_mel_and_duration_losses_only():
    objective = build_objective("mel")
    losses = objective.generator_losses(None, objective.generator_forward(build("mel"), batch_of(LONG)))
    assert set(losses) == {"mel", "duration", "total"} == set(objective.generator_loss_names)
    assert losses["total"].item() == pytest.approx(45 * losses["mel"].item() + losses["duration"].item(), rel=1e-5)


def test_vits_objective_without_a_discriminator_is_rejected():
    objective = build_objective()
    with pytest.raises(ValueError, match="needs a discriminator"):
        objective.generator_losses(None, objective.generator_forward(build(), batch_of(SHORT)))


@pytest.mark.parametrize("kind", ["vits", "mel"])
def test_generator_output_of_a_clip_does_not_depend_on_its_batch(kind):
    generator, objective = build(kind), build_objective(kind)
    clips, starts = [LONG, SHORT, SHORTER_THAN_SEGMENT], [12, 3, 0]
    with torch.no_grad():
        together = objective.generator_forward(generator, batch_of(*clips), torch.tensor(starts))
        for row, (one, start) in enumerate(zip(clips, starts, strict=True)):
            single = objective.generator_forward(generator, batch_of(one), torch.tensor([start]))
            frames = len(one.pcm) // 256
            for name in ("generated", "recorded", "generated_mel", "recorded_mel", "mel_mask"):
                ours, expected = getattr(together, name)[row], getattr(single, name)[0]
                mask, bound = (single.mel_mask[0], 5e-4) if "mel" in name else (1.0, 1e-5)
                torch.testing.assert_close(ours * mask, expected * mask, atol=bound, rtol=1e-5)
            for name in ("latents", "posterior_log_std", "prior_mean", "prior_log_std"):
                ours, expected = getattr(together.output, name)[row], getattr(single.output, name)[0]
                torch.testing.assert_close(ours[:, :frames], expected[:, :frames], atol=1e-5, rtol=1e-5)
                assert (ours[:, frames:] == 0).all()
            paths = together.output.token_of_frame[row, :frames], single.output.token_of_frame[0, :frames]
            assert torch.equal(*paths)
            durations = together.output.duration_loss[row], single.output.duration_loss[0]
            torch.testing.assert_close(*durations, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", ["vits", "mel"])
@pytest.mark.parametrize("clips", [(LONG, SHORT), (LONG, SHORTER_THAN_SEGMENT)], ids=["long", "trap_7"])
def test_losses_do_not_depend_on_padding(kind, clips):
    batch = batch_of(*clips)
    wider = replace(
        batch,
        tokens=nn.functional.pad(batch.tokens, (0, 4)),
        waveform=nn.functional.pad(batch.waveform, (0, 6 * 256)),
    )
    assert losses_of(wider, [12, 0], kind) == pytest.approx(losses_of(batch, [12, 0], kind), rel=1e-5)


def in_float64(batch: Batch) -> Batch:
    return replace(batch, waveform=batch.waveform.double())


def test_shares_of_an_update_sum_to_the_combined_batch():
    """Losses and gradients, for any assignment of clips to micro-batches, placeholders included.

    In float64: in float32 the signs of L1 and of leaky ReLUs flip with the last bit, which changes a gradient by 1e-3
    of its norm.
    """
    clips = [(LONG, 12), (SHORT, 3), (SHORTER_THAN_SEGMENT, 0), (clip(22, 7, seed=5), 9)]
    discriminator, objective = build_discriminator().double(), build_objective()

    def run(parts: list[list[tuple[Clip, int]]]) -> tuple[dict[str, float], dict[str, Tensor]]:
        generator, totals = build().double(), dict.fromkeys(objective.generator_loss_names, 0.0)
        batches = [in_float64(batch_of(*(one for one, _ in part))) for part in parts]
        counts = LossDenominators(*(sum(column) for column in zip(*map(objective.denominators, batches), strict=True)))
        for batch, part in zip(batches, parts, strict=True):
            starts = torch.tensor([start for _, start in part] or [0])
            losses = objective.generator_losses(
                discriminator, objective.generator_forward(generator, batch, starts, counts)
            )
            losses["total"].backward()
            totals = {name: totals[name] + losses[name].item() for name in totals}
        return totals, gradients(generator)

    combined_losses, combined_gradients = run([clips])
    for parts in ([[one] for one in clips], [clips[:1], clips[1:]], [clips[:3], clips[3:], []]):
        losses, own_gradients = run(parts)
        assert losses == pytest.approx(combined_losses, rel=1e-12)
        difference = torch.stack(
            [(own_gradients[name] - combined_gradients[name]).norm() for name in own_gradients]
        ).norm()
        assert difference / torch.stack([gradient.norm() for gradient in combined_gradients.values()]).norm() < 1e-12


class Casts(TorchDispatchMode):
    """Collects the casts from float64 to a narrower type."""

    def __init__(self) -> None:
        super().__init__()
        self.narrowing: list[torch.dtype] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].dtype == torch.float64 != result.dtype:
            self.narrowing.append(result.dtype)
        return result


@pytest.mark.parametrize("kind", ["vits", "mel"])
def test_float64_is_never_cast_down(kind):
    generator, discriminator, objective = build(kind).double(), build_discriminator().double(), build_objective(kind)
    with Casts() as casts:
        pair = objective.generator_forward(generator, in_float64(batch_of(LONG, SHORT)))
        losses = objective.generator_losses(discriminator, pair) | objective.discriminator_losses(discriminator, pair)
        torch.zeros(1, dtype=torch.float64).float()  # the only cast expected
    assert {loss.dtype for loss in losses.values()} == {torch.float64}
    assert casts.narrowing == [torch.float32]


def test_placeholder_batch_has_zero_losses_and_gradients():
    generator, discriminator, objective = build(), build_discriminator(), build_objective()
    pair = objective.generator_forward(generator, batch_of(), denominators=LossDenominators(3, 20, 50, 24))
    assert objective.denominators(batch_of()) == (0, 0, 0, 0)
    for losses in (
        objective.discriminator_losses(discriminator, pair),
        objective.generator_losses(discriminator, pair),
    ):
        assert {loss.item() for loss in losses.values()} == {0.0}
        losses["total"].backward()
    assert all(
        (gradient == 0).all() for gradient in (*gradients(discriminator).values(), *gradients(generator).values())
    )


def test_trap_7_clip_shorter_than_the_segment_is_padded_and_masked():
    objective, generator = build_objective(), build()
    pair = objective.generator_forward(generator, batch_of(SHORTER_THAN_SEGMENT, clip(2, 2, seed=4)))
    assert pair.mel_mask.sum(2)[:, 0].tolist() == [5, 2]
    assert pair.generated.shape == pair.recorded.shape == (2, 1, SEGMENT * 256)
    for wave in (pair.generated, pair.recorded):
        assert (wave[0, :, 5 * 256 :] == 0).all()
        assert (wave[1, :, 2 * 256 :] == 0).all()
        assert (wave[0, :, : 5 * 256] != 0).any()
    losses = objective.generator_losses(build_discriminator(), pair)
    losses["total"].backward()
    assert all(p.grad.isfinite().all() for p in generator.parameters() if p.grad is not None)


def test_trap_7_mel_counts_only_the_frames_of_a_short_clip():
    objective = build_objective()
    pair = objective.generator_forward(build(), batch_of(SHORTER_THAN_SEGMENT))
    difference = (pair.generated_mel - pair.recorded_mel)[0, :, :5].abs().mean()
    assert objective.generator_losses(build_discriminator(), pair)["mel"].item() == pytest.approx(
        difference.item(), rel=1e-5
    )


def test_trap_9_target_is_cut_from_the_mel_of_the_whole_clip():
    batch = batch_of(LONG)
    pair = build_objective().generator_forward(build(), batch, torch.tensor([12]))
    whole_mel = log_mel(spectrogram(batch.waveform, batch.frame_lengths, SPEC), SPEC)
    assert torch.equal(pair.recorded_mel, whole_mel[:, :, 12 : 12 + SEGMENT])
    assert torch.equal(pair.recorded[0, 0], batch.waveform[0, 12 * 256 : (12 + SEGMENT) * 256])


def test_segments_are_drawn_within_the_clip():
    torch.manual_seed(0)
    generator, objective = build(), build_objective()
    with torch.no_grad():
        starts = [
            objective.generator_forward(generator, batch_of(SHORT, SHORTER_THAN_SEGMENT)).output.segment_starts.tolist()
            for _ in range(12)
        ]
    assert {second for _, second in starts} == {0}
    assert {first for first, _ in starts} <= set(range(14 - SEGMENT + 1))
    assert len({first for first, _ in starts}) > 1


def test_bf16_losses_are_close_to_fp32():
    exact = losses_of(batch_of(LONG, SHORT), [12, 3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = losses_of(batch_of(LONG, SHORT), [12, 3])
    assert rough == pytest.approx(exact, rel=0.05)
    assert rough != exact
