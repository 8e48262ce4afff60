"""The objective against figures of the original VITS implementation (tests/golden; weights and inputs by formula)."""

import math
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.golden import read_case
from vits_trainer.diagnostics import golden
from vits_trainer.models import alignment, generator
from vits_trainer.training import losses
from vits_trainer.utils.errors import DataError, ModelError

REFERENCE = Path(__file__).parents[2].parent / "shared" / "reference"
CASES = ("single_sdp", "multi_sdp")


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


def quick(name: str) -> golden.Case:
    """A case with the scale discriminator alone; figures that depend on all discriminators no longer agree."""
    case = read_case(name)
    figures = dict(case.figures)
    for key in ("discriminator_shapes", "discriminator_gradient_norms"):
        figures[key] = {name: value for name, value in figures[key].items() if name.startswith("discriminators.0.")}
    return golden.Case(case.name, figures, case.tensors)


def compared(case: golden.Case) -> dict[str, golden.ComparedValue]:
    return {figure.name: figure for figure in golden.compare_case(case)}


@cache
def unbroken(name: str) -> dict[str, golden.ComparedValue]:
    return compared(quick(name))


@pytest.mark.parametrize("name", CASES)
def test_objective_equals_the_original_in_posterior_losses_and_gradients(name):
    case = read_case(name)
    figures = golden.compare_case(case)
    golden_figures = ("losses", "generator_gradient_norms", "discriminator_gradient_norms")
    assert len(figures) == 1 + sum(len(case.figures[key]) for key in golden_figures)
    assert [figure for figure in figures if not figure.agrees] == []


@pytest.mark.parametrize("name", CASES)
def test_losses_equal_the_originals_in_float32_too(name):
    figures = golden.compare_case(read_case(name), torch.float32)
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
    assert not golden.ComparedValue("loss", 1.0, math.nan, golden.LOSS).agrees
    assert not golden.ComparedValue("norm", 0.0, math.nan, golden.GRADIENT_NORM).agrees
    assert golden.ComparedValue("loss", 1.0, math.nan, golden.LOSS).error == math.inf


def test_two_norms_that_are_zero_but_for_rounding_agree():
    assert golden.ComparedValue("norm", 3e-17, 8e-10, golden.GRADIENT_NORM).agrees
    assert not golden.ComparedValue("norm", 3e-17, 2e-9, golden.GRADIENT_NORM).agrees
    assert not golden.ComparedValue("norm", 0.0, 1.0, golden.GRADIENT_NORM).agrees


@pytest.mark.parametrize(
    ("kind", "off_by"),
    [(golden.LOSS, 1e-6), (golden.LOSS_FLOAT32, 1e-4), (golden.GRADIENT_NORM, 1e-4), (golden.POSTERIOR, 1e-8)],
)
def test_bounds_are_those_of_the_reference(kind, off_by):
    assert golden.ComparedValue("one", 1.0, 1 + 0.9 * off_by, kind).agrees
    assert not golden.ComparedValue("one", 1.0, 1 - 1.1 * off_by, kind).agrees


def test_case_that_lacks_something_says_what():
    case = quick("single_sdp")
    tensors = {name: tensor for name, tensor in case.tensors.items() if name != "input.ids_slice"}
    with pytest.raises(DataError, match=r"single_sdp lacks 'input\.ids_slice'"):
        golden.compare_case(golden.Case(case.name, case.figures, tensors))
    del tensors["generator.enc_p.emb.weight"]
    with pytest.raises(ModelError, match=r"text_encoder\.embed_tokens\.weight is missing"):
        golden.compare_case(golden.Case(case.name, case.figures, tensors))


def test_folder_without_a_readable_case_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no golden case"):
        golden.read_cases(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match=r"broken\.json"):
        golden.read_cases(tmp_path)
