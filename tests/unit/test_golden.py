"""The objective against figures of the original VITS implementation (tests/golden; weights and inputs by formula)."""

import base64
import json
import math
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import VitsModel
from transformers.models.vits.modeling_vits import VitsDurationPredictor

from vits_trainer import alignment, durations, generator, golden, losses
from vits_trainer.audio import frame_mask
from vits_trainer.conversion import from_original_generator
from vits_trainer.errors import DataError, ModelError
from vits_trainer.models import in_training_form

GOLDEN = Path(__file__).parents[1] / "golden"
REFERENCE = Path(__file__).parents[2].parent / "shared" / "reference"
CASES = ("single_sdp", "multi_sdp")


def weights_by_formula(figures: dict) -> dict[str, Tensor]:
    weights = {}
    for name, shape in figures["generator_shapes"].items():
        weight = golden.fill(name, tuple(shape), **figures["generator_fill"])
        if name.endswith("gamma"):
            weight = weight + 1
        if name.startswith("dec.") and name.endswith("weight"):
            weight = weight * 6
        if name.startswith("dec.") and name.endswith("weight_g"):
            weight = weight * 2.2
        weights[name] = weight
    return weights


def sine(phase: Tensor) -> Tensor:
    """Rounded from float64, as the last bit of a float32 sine differs between processors."""
    return phase.double().sin().float()


def wave(b: int, t: Tensor) -> Tensor:
    second = 0.2 * sine(2 * math.pi * (900 + 310 * b) * t * (1 + 0.3 * t))
    return 0.4 * sine(2 * math.pi * (140 + 40 * b) * t) + second


def as_the_reference_rounded(waves: Tensor) -> Tensor:
    """Adds what the reference's float32 sine is off by, in units of the last place: 1,914 samples are, by 1e-7."""
    packed = zlib.decompress(base64.b64decode((GOLDEN / "wave_ulps.b64").read_text()))
    ulps = torch.from_numpy(np.frombuffer(packed, "<i2").astype(np.int32)).view_as(waves)
    return (waves.view(torch.int32) + ulps).view(torch.float32)


def inputs_by_formula(figures: dict) -> dict[str, Tensor]:
    inputs = {name: torch.tensor(values) for name, values in figures["input"].items()}
    tokens, frames = inputs["xl"], inputs["yl"]
    i = torch.arange(int(tokens.max()))
    n = torch.arange(int(frames.max()) * 256)
    t = n / 22050
    inputs["x"] = torch.stack([(i * (3 + b) + b) % 40 * (i < tokens[b]) for b in range(3)])
    inputs["wav"] = as_the_reference_rounded(torch.stack([wave(b, t) * (n < 256 * frames[b]) for b in range(3)]))
    return inputs


def read_case(name: str) -> golden.Case:
    figures = json.loads((GOLDEN / f"{name}.json").read_text())
    tensors = {f"generator.{key}": weight for key, weight in weights_by_formula(figures).items()}
    tensors |= {f"input.{key}": value for key, value in inputs_by_formula(figures).items()}
    return golden.Case(name, figures, tensors | {"output.z": torch.tensor(figures["z"], dtype=torch.float64)})


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference's own files are not here")
@pytest.mark.parametrize("name", CASES)
def test_formulas_and_figures_are_the_references(name):
    reference = {case.name: case for case in golden.read_cases(REFERENCE)}[name]
    case = read_case(name)
    for key, tensor in reference.tensors.items():
        if key in case.tensors:
            assert (case.tensors[key] - tensor).abs().max() <= (1e-10 if key == "output.z" else 0.0), key
        else:
            assert key.startswith("output."), key
    bounds = {"losses": 1e-11, "generator_gradient_norms": 1e-8, "discriminator_gradient_norms": 1e-8}
    for key, rounding in bounds.items():
        assert case.figures[key] == pytest.approx(reference.figures[key], rel=rounding, abs=0), key


def build_generator(case: golden.Case) -> VitsModel:
    model = in_training_form(VitsModel(golden.vits_config(case.figures["config"]))).eval()
    model.load_state_dict(from_original_generator(weights_by_formula(case.figures), model.state_dict()))
    return model


def quick(name: str) -> golden.Case:
    """A case with the scale discriminator alone; figures that depend on all discriminators no longer agree."""
    case = read_case(name)
    figures = dict(case.figures)
    for key in ("discriminator_shapes", "discriminator_gradient_norms"):
        figures[key] = {name: value for name, value in figures[key].items() if name.startswith("discriminators.0.")}
    return golden.Case(case.name, figures, case.tensors)


def compared(case: golden.Case) -> dict[str, golden.Figure]:
    return {figure.name: figure for figure in golden.compare(case)}


@cache
def unbroken(name: str) -> dict[str, golden.Figure]:
    return compared(quick(name))


@pytest.mark.parametrize("name", CASES)
def test_objective_equals_the_original_in_posterior_losses_and_gradients(name):
    case = read_case(name)
    figures = golden.compare(case)
    golden_figures = ("losses", "generator_gradient_norms", "discriminator_gradient_norms")
    assert len(figures) == 1 + sum(len(case.figures[key]) for key in golden_figures)
    assert [figure for figure in figures if not figure.agrees] == []


@pytest.mark.parametrize("name", CASES)
def test_losses_equal_the_originals_in_float32_too(name):
    figures = golden.compare(read_case(name), torch.float32)
    assert {figure.kind for figure in figures} == {golden.LOSS_FLOAT32}
    assert len(figures) == len(golden.LOSS_NAMES)
    assert [figure for figure in figures if not figure.agrees] == []


@pytest.mark.parametrize(
    ("module", "function", "figure"),
    [
        (losses, "kl_divergence", "loss_kl"),
        (losses, "mel_l1", "loss_mel"),
        (generator, "duration_loss", "loss_duration"),
    ],
)
def test_loss_wrong_by_a_hundredth_of_a_percent_is_seen(monkeypatch, module, function, figure):
    assert unbroken("single_sdp")[figure].agrees
    right = getattr(module, function)
    monkeypatch.setattr(module, function, lambda *arguments: 1.0001 * right(*arguments))
    assert not compared(quick("single_sdp"))[figure].agrees


def test_gradient_wrong_by_a_tenth_of_a_percent_is_seen_where_the_loss_agrees(monkeypatch):
    name = "generator gradient enc_p.proj.weight"
    assert unbroken("single_sdp")[name].agrees
    expand = alignment.expand

    def steeper(*arguments: Tensor) -> Tensor:
        values = expand(*arguments)
        return values + 0.001 * (values - values.detach())

    monkeypatch.setattr(alignment, "expand", steeper)
    broken = compared(quick("single_sdp"))
    assert broken["loss_kl"].agrees
    assert broken[name].error == pytest.approx(0.001, rel=1e-3)
    assert not broken[name].agrees


def transformers_own_nll(predictor, hidden, text_mask, speaker, token_durations, noise):
    return predictor(hidden, text_mask, speaker, durations=token_durations.to(hidden.dtype), reverse=False)


def test_trap_1_transformers_own_duration_direction_is_seen(monkeypatch):
    assert unbroken("single_sdp")["loss_duration"].agrees
    monkeypatch.setattr(generator, "duration_loss", transformers_own_nll)
    monkeypatch.setattr(torch, "randn", lambda *size, **options: torch.zeros(*size))
    broken = compared(quick("single_sdp"))["loss_duration"]
    assert broken.ours == pytest.approx(2.596, abs=1e-3)
    assert broken.golden == pytest.approx(1.711, abs=1e-3)
    assert not broken.agrees


def test_missing_gradient_is_seen_where_the_loss_agrees(monkeypatch):
    name = "generator gradient enc_p.proj.weight"
    assert unbroken("multi_sdp")[name].agrees
    expand = alignment.expand
    monkeypatch.setattr(alignment, "expand", lambda *arguments: expand(*arguments).detach())
    broken = compared(quick("multi_sdp"))
    assert broken["loss_kl"].agrees
    assert not broken[name].agrees


def test_posterior_that_differs_is_seen_and_not_replaced_by_the_golden_one():
    case = quick("single_sdp")
    shifted = golden.Case(case.name, case.figures, {**case.tensors, "output.z": case.tensors["output.z"] + 2e-8})
    figures = compared(shifted)
    assert not figures["posterior sample, greatest difference"].agrees
    assert figures["loss_kl"].ours == unbroken("single_sdp")["loss_kl"].ours


def test_nan_never_agrees():
    assert not golden.Figure("loss", 1.0, math.nan, golden.LOSS).agrees
    assert not golden.Figure("norm", 0.0, math.nan, golden.GRADIENT_NORM).agrees
    assert golden.Figure("loss", 1.0, math.nan, golden.LOSS).error == math.inf


def test_two_norms_that_are_zero_but_for_rounding_agree():
    assert golden.Figure("norm", 3e-17, 8e-10, golden.GRADIENT_NORM).agrees
    assert not golden.Figure("norm", 3e-17, 2e-9, golden.GRADIENT_NORM).agrees
    assert not golden.Figure("norm", 0.0, 1.0, golden.GRADIENT_NORM).agrees


@pytest.mark.parametrize(
    ("kind", "off_by"),
    [(golden.LOSS, 1e-6), (golden.LOSS_FLOAT32, 1e-4), (golden.GRADIENT_NORM, 1e-4), (golden.POSTERIOR, 1e-8)],
)
def test_bounds_are_those_of_the_reference(kind, off_by):
    assert golden.Figure("one", 1.0, 1 + 0.9 * off_by, kind).agrees
    assert not golden.Figure("one", 1.0, 1 - 1.1 * off_by, kind).agrees


def test_case_that_lacks_something_says_what():
    case = quick("single_sdp")
    tensors = {name: tensor for name, tensor in case.tensors.items() if name != "input.ids_slice"}
    with pytest.raises(DataError, match=r"single_sdp lacks 'input\.ids_slice'"):
        golden.compare(golden.Case(case.name, case.figures, tensors))
    del tensors["generator.enc_p.emb.weight"]
    with pytest.raises(ModelError, match=r"text_encoder\.embed_tokens\.weight is missing"):
        golden.compare(golden.Case(case.name, case.figures, tensors))


def test_folder_without_a_readable_case_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no golden case"):
        golden.read_cases(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match=r"broken\.json"):
        golden.read_cases(tmp_path)


def test_stochastic_duration_flows_are_the_inverse_of_inference(monkeypatch):
    torch.manual_seed(0)
    predictor = build_generator(read_case("multi_sdp")).duration_predictor
    hidden, speaker = torch.randn(2, 16, 7), torch.randn(2, 8, 1)
    mask = frame_mask(torch.tensor([7, 4]), 7)
    start = torch.randn(2, 2, 7) * mask
    condition = predictor.conv_pre(hidden) + predictor.cond(speaker)
    condition = predictor.conv_proj(predictor.conv_dds(condition, mask)) * mask
    latents, _ = durations._through(predictor.flows, start, mask, condition)
    monkeypatch.setattr(torch, "randn", lambda *size, **options: latents)
    log_durations = predictor(hidden, mask, speaker, reverse=True, noise_scale=1.0)
    assert (latents - start).abs().max() > 0.1
    torch.testing.assert_close(log_durations, start[:, :1], atol=1e-4, rtol=0)


def test_log_determinant_of_the_duration_flows_is_that_of_their_jacobian():
    torch.manual_seed(0)
    predictor = build_generator(read_case("single_sdp")).duration_predictor.double()
    start, condition, mask = torch.randn(1, 2, 3).double(), torch.randn(1, 16, 3).double(), torch.ones(1, 1, 3).double()

    def flows(values: Tensor) -> Tensor:
        return durations._through(predictor.flows, values, mask, condition)[0]

    jacobian = torch.autograd.functional.jacobian(flows, start).reshape(6, 6)
    log_det = durations._through(predictor.flows, start, mask, condition)[1]
    torch.testing.assert_close(log_det[0], torch.linalg.slogdet(jacobian).logabsdet, atol=1e-5, rtol=0)


def test_stochastic_duration_loss_gives_neither_text_nor_speaker_a_gradient():
    predictor = build_generator(read_case("multi_sdp")).duration_predictor
    hidden = torch.randn(1, 16, 4, requires_grad=True)
    speaker = torch.randn(1, 8, 1, requires_grad=True)
    mask = torch.ones(1, 1, 4)
    durations.duration_loss(predictor, hidden, mask, speaker, mask * 3, torch.zeros_like).sum().backward()
    assert hidden.grad is None
    assert speaker.grad is None
    assert all(parameter.grad is not None for parameter in predictor.parameters())


def test_plain_duration_loss_is_the_squared_error_of_log_durations():
    torch.manual_seed(0)
    config = golden.vits_config({**read_case("single_sdp").figures["config"], "use_sdp": False})
    predictor = VitsDurationPredictor(config).eval()
    hidden = torch.randn(2, 16, 3, requires_grad=True)
    mask = frame_mask(torch.tensor([3, 2]), 3)
    frames = torch.tensor([[[4.0, 1.0, 7.0]], [[2.0, 9.0, 0.0]]])
    loss = durations.duration_loss(predictor, hidden, mask, None, frames, torch.randn_like)
    predicted = predictor(hidden, mask).detach()
    by_hand = [
        sum((predicted[b, 0, s].item() - math.log(frames[b, 0, s].item() + 1e-6)) ** 2 for s in range(tokens))
        for b, tokens in enumerate((3, 2))
    ]
    assert loss.tolist() == pytest.approx(by_hand, rel=1e-5)
    loss.sum().backward()
    assert hidden.grad is None
