"""The objective: who gets a gradient, and that a clip's losses are its own."""

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
PLACE = MicroBatchSpec((), 0, 0, True)
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
    return collate(clips, PLACE, SPEC, SILENCE).to(torch.device("cpu"))


def build(kind: str = "vits", architecture: Architecture = TINY, speakers: tuple[str, ...] = ()) -> Generator:
    """A generator without noise or dropout, its zeros moved so that every layer is felt."""
    torch.manual_seed(0)
    model = new_model(architecture, build_tokenizer(["abcd"]), list(speakers))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    generator = Generator(model, "posterior" if kind == "vits" else "prior", SEGMENT).eval()
    generator.noise = torch.zeros_like
    return generator


def build_judge() -> Discriminator:
    torch.manual_seed(1)
    return Discriminator(DiscriminatorShape((2, 3), 8))


def objective(kind: str = "vits", weights: LossWeights | None = None) -> Objective:
    return Objective(kind, weights or LossWeights(), SPEC, SEGMENT)


def losses_of(batch: Batch, starts: list[int], kind: str = "vits") -> dict[str, float]:
    generator, judge, aim = build(kind), build_judge(), objective(kind)
    pair = aim.generator_forward(generator, batch, torch.tensor(starts))
    named = {f"g/{name}": loss for name, loss in aim.generator_losses(judge, pair).items()}
    if kind == "vits":
        named |= {f"d/{name}": loss for name, loss in aim.discriminator_losses(judge, pair).items()}
    return {name: loss.item() for name, loss in named.items()}


def gradients(network: nn.Module) -> dict[str, Tensor | None]:
    return {name: p.grad if p.grad is None else p.grad.clone() for name, p in network.named_parameters()}


def test_trap_4_generators_turn_leaves_the_judge_without_gradient():
    generator, judge, aim = build(), build_judge(), objective()
    pair = aim.generator_forward(generator, batch_of(LONG, SHORT))
    with frozen(judge):
        aim.generator_losses(judge, pair)["total"].backward()
    assert all(gradient is None for gradient in gradients(judge).values())
    assert all(parameter.requires_grad for parameter in judge.parameters())


def test_trap_4_generators_turn_leaves_the_judges_accumulated_gradient_as_it_is():
    generator, judge, aim = build(), build_judge(), objective()
    alone = build_judge()
    for batch in (batch_of(LONG, SHORT), batch_of(SHORT, LONG)):
        pair = aim.generator_forward(generator, batch, torch.tensor([0, 0]))
        aim.discriminator_losses(judge, pair)["total"].backward()
        aim.discriminator_losses(alone, pair)["total"].backward()
        before = gradients(judge)
        with frozen(judge):
            aim.generator_losses(judge, pair)["total"].backward()
        for name, gradient in gradients(judge).items():
            assert torch.equal(gradient, before[name]), name
    for name, gradient in gradients(alone).items():
        torch.testing.assert_close(gradients(judge)[name], gradient)


def test_without_freezing_the_judge_would_get_the_generators_gradient():
    generator, judge, aim = build(), build_judge(), objective()
    aim.generator_losses(judge, aim.generator_forward(generator, batch_of(SHORT)))["total"].backward()
    assert any(gradient is not None for gradient in gradients(judge).values())


def test_frozen_gives_back_what_it_took_even_after_an_error():
    judge = build_judge()
    first, *others = judge.parameters()
    first.requires_grad_(False)
    with frozen(judge):
        assert not any(parameter.requires_grad for parameter in judge.parameters())
    with pytest.raises(RuntimeError), frozen(judge):
        judge(torch.zeros(1, 3, 8))  # one channel is expected
    assert not first.requires_grad
    assert all(parameter.requires_grad for parameter in others)


def test_discriminators_turn_gives_the_generator_no_gradient():
    generator, judge, aim = build(), build_judge(), objective()
    pair = aim.generator_forward(generator, batch_of(LONG))
    aim.discriminator_losses(judge, pair)["total"].backward()
    assert all(gradient is None for gradient in gradients(generator).values())
    assert all(gradient.abs().sum() > 0 for gradient in gradients(judge).values())


@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize("kind", ["vits", "mel"])
def test_gradient_reaches_every_trained_parameter(kind, stochastic):
    architecture = replace(TINY, use_stochastic_duration_prediction=stochastic)
    generator, judge, aim = build(kind, architecture, speakers=("a", "b")), build_judge(), objective(kind)
    clips = [clip(30, 9, seed=1, speaker=0), clip(14, 5, seed=2, speaker=1)]
    pair = aim.generator_forward(generator, batch_of(*clips))
    aim.generator_losses(judge if kind == "vits" else None, pair)["total"].backward()
    trained = {name: p for name, p in generator.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.isfinite().all()] == []
    # a key's bias moves all of a query's scores alike, which softmax does not see
    assert [name for name, p in trained.items() if p.grad.abs().max() == 0 and "k_proj.bias" not in name] == []
    posterior = [p.requires_grad for p in generator.model.posterior_encoder.parameters()]
    assert set(posterior) == {kind == "vits"}
    assert {n for n, p in generator.named_parameters() if not p.requires_grad} == (
        set() if kind == "vits" else {n for n, _ in generator.named_parameters() if ".posterior_encoder." in n}
    )


def test_total_is_the_weighted_sum():
    weights = LossWeights(adversarial=2, feature_matching=3, mel=5, duration=7, kl=11)
    aim = objective(weights=weights)
    found = aim.generator_losses(build_judge(), aim.generator_forward(build(), batch_of(LONG)))
    by_hand = sum(getattr(weights, name) * found[name].item() for name in vars(weights))
    assert found["total"].item() == pytest.approx(by_hand, rel=1e-5)
    assert set(found) == {*vars(weights), "total"} == set(aim.generator_loss_names)


def test_mel_objective_is_mel_and_durations_alone():
    aim = objective("mel")
    found = aim.generator_losses(None, aim.generator_forward(build("mel"), batch_of(LONG)))
    assert set(found) == {"mel", "duration", "total"} == set(aim.generator_loss_names)
    assert found["total"].item() == pytest.approx(45 * found["mel"].item() + found["duration"].item(), rel=1e-5)


def test_whole_objective_without_a_judge_is_refused():
    aim = objective()
    with pytest.raises(ValueError, match="needs a discriminator"):
        aim.generator_losses(None, aim.generator_forward(build(), batch_of(SHORT)))


@pytest.mark.parametrize("kind", ["vits", "mel"])
def test_a_clips_synthesis_does_not_depend_on_its_neighbours(kind):
    generator, aim = build(kind), objective(kind)
    clips, starts = [LONG, SHORT, SHORTER_THAN_SEGMENT], [12, 3, 0]
    with torch.no_grad():
        together = aim.generator_forward(generator, batch_of(*clips), torch.tensor(starts))
        for row, (one, start) in enumerate(zip(clips, starts, strict=True)):
            alone = aim.generator_forward(generator, batch_of(one), torch.tensor([start]))
            frames = len(one.pcm) // 256
            for name in ("generated", "recorded", "generated_mel", "recorded_mel", "mel_mask"):
                ours, expected = getattr(together, name)[row], getattr(alone, name)[0]
                heard, bound = (alone.mel_mask[0], 5e-4) if "mel" in name else (1.0, 1e-5)
                torch.testing.assert_close(ours * heard, expected * heard, atol=bound, rtol=1e-5)
            for name in ("latents", "posterior_log_std", "prior_mean", "prior_log_std"):
                ours, expected = getattr(together.output, name)[row], getattr(alone.output, name)[0]
                torch.testing.assert_close(ours[:, :frames], expected[:, :frames], atol=1e-5, rtol=1e-5)
                assert (ours[:, frames:] == 0).all()
            paths = together.output.token_of_frame[row, :frames], alone.output.token_of_frame[0, :frames]
            assert torch.equal(*paths)
            spent = together.output.duration_loss[row], alone.output.duration_loss[0]
            torch.testing.assert_close(*spent, atol=1e-4, rtol=1e-5)


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


def test_shares_of_an_update_add_up_to_the_joined_batch():
    """Losses and gradients, however the clips are dealt to micro-batches, silence included.

    In float64: in float32 the signs of L1 and of leaky ReLUs flip with the last bit, which moves a gradient by 1e-3 of
    its norm.
    """
    whole = [(LONG, 12), (SHORT, 3), (SHORTER_THAN_SEGMENT, 0), (clip(22, 7, seed=5), 9)]
    judge, aim = build_judge().double(), objective()

    def run(parts: list[list[tuple[Clip, int]]]) -> tuple[dict[str, float], dict[str, Tensor]]:
        generator, found = build().double(), dict.fromkeys(aim.generator_loss_names, 0.0)
        batches = [in_float64(batch_of(*(one for one, _ in part))) for part in parts]
        counts = LossDenominators(*(sum(column) for column in zip(*map(aim.denominators, batches), strict=True)))
        for batch, part in zip(batches, parts, strict=True):
            starts = torch.tensor([start for _, start in part] or [0])
            losses = aim.generator_losses(judge, aim.generator_forward(generator, batch, starts, counts))
            losses["total"].backward()
            found = {name: found[name] + losses[name].item() for name in found}
        return found, gradients(generator)

    joined_losses, joined_gradients = run([whole])
    for parts in ([[one] for one in whole], [whole[:1], whole[1:]], [whole[:3], whole[3:], []]):
        losses, found = run(parts)
        assert losses == pytest.approx(joined_losses, rel=1e-12)
        difference = torch.stack([(found[name] - joined_gradients[name]).norm() for name in found]).norm()
        assert difference / torch.stack([gradient.norm() for gradient in joined_gradients.values()]).norm() < 1e-12


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
def test_float64_is_cast_down_nowhere(kind):
    generator, judge, aim = build(kind).double(), build_judge().double(), objective(kind)
    with Casts() as casts:
        pair = aim.generator_forward(generator, in_float64(batch_of(LONG, SHORT)))
        found = aim.generator_losses(judge, pair) | aim.discriminator_losses(judge, pair)
        torch.zeros(1, dtype=torch.float64).float()  # what is looked for
    assert {loss.dtype for loss in found.values()} == {torch.float64}
    assert casts.narrowing == [torch.float32]


def test_silence_weighs_nothing():
    generator, judge, aim = build(), build_judge(), objective()
    pair = aim.generator_forward(generator, batch_of(), denominators=LossDenominators(3, 20, 50, 24))
    assert aim.denominators(batch_of()) == (0, 0, 0, 0)
    for losses in (aim.discriminator_losses(judge, pair), aim.generator_losses(judge, pair)):
        assert {loss.item() for loss in losses.values()} == {0.0}
        losses["total"].backward()
    assert all((gradient == 0).all() for gradient in (*gradients(judge).values(), *gradients(generator).values()))


def test_trap_7_clip_shorter_than_the_segment_is_padded_and_masked():
    aim, generator = objective(), build()
    pair = aim.generator_forward(generator, batch_of(SHORTER_THAN_SEGMENT, clip(2, 2, seed=4)))
    assert pair.mel_mask.sum(2)[:, 0].tolist() == [5, 2]
    assert pair.generated.shape == pair.recorded.shape == (2, 1, SEGMENT * 256)
    for wave in (pair.generated, pair.recorded):
        assert (wave[0, :, 5 * 256 :] == 0).all()
        assert (wave[1, :, 2 * 256 :] == 0).all()
        assert (wave[0, :, : 5 * 256] != 0).any()
    found = aim.generator_losses(build_judge(), pair)
    found["total"].backward()
    assert all(p.grad.isfinite().all() for p in generator.parameters() if p.grad is not None)


def test_trap_7_mel_counts_only_the_frames_of_a_short_clip():
    aim = objective()
    pair = aim.generator_forward(build(), batch_of(SHORTER_THAN_SEGMENT))
    difference = (pair.generated_mel - pair.recorded_mel)[0, :, :5].abs().mean()
    assert aim.generator_losses(build_judge(), pair)["mel"].item() == pytest.approx(difference.item(), rel=1e-5)


def test_trap_9_target_is_cut_from_the_mel_of_the_whole_clip():
    batch = batch_of(LONG)
    pair = objective().generator_forward(build(), batch, torch.tensor([12]))
    whole = log_mel(spectrogram(batch.waveform, batch.frame_lengths, SPEC), SPEC)
    assert torch.equal(pair.recorded_mel, whole[:, :, 12 : 12 + SEGMENT])
    assert torch.equal(pair.recorded[0, 0], batch.waveform[0, 12 * 256 : (12 + SEGMENT) * 256])


def test_segments_are_drawn_where_they_fit():
    torch.manual_seed(0)
    generator, aim = build(), objective()
    with torch.no_grad():
        starts = [
            aim.generator_forward(generator, batch_of(SHORT, SHORTER_THAN_SEGMENT)).output.segment_starts.tolist()
            for _ in range(12)
        ]
    assert {second for _, second in starts} == {0}
    assert {first for first, _ in starts} <= set(range(14 - SEGMENT + 1))
    assert len({first for first, _ in starts}) > 1


def test_bf16_is_finite_and_near_fp32():
    exact = losses_of(batch_of(LONG, SHORT), [12, 3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = losses_of(batch_of(LONG, SHORT), [12, 3])
    assert rough == pytest.approx(exact, rel=0.05)
    assert rough != exact
