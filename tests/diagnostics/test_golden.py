"""Objective against golden values of the original VITS implementation (tests/golden; formula weights and inputs)."""

import json
import math
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.support.golden import read_case, scale_only_case
from vits_trainer.cli.main import main
from vits_trainer.diagnostics import golden
from vits_trainer.models import alignment, generator
from vits_trainer.training import losses
from vits_trainer.utils.errors import DataError, ModelError

pytestmark = pytest.mark.slow

REFERENCE = Path(__file__).parents[2].parent / "shared" / "reference"
CASES = ("single_sdp", "multi_sdp")


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference files are not available")
@pytest.mark.parametrize("name", CASES)
def test_formulas_and_golden_values_match_the_reference(name):
    reference = {case.name: case for case in golden.read_cases(REFERENCE)}[name]
    case = read_case(name)
    for key, tensor in reference.tensors.items():
        if key in case.tensors:
            assert (case.tensors[key] - tensor).abs().max() <= (1e-10 if key == "output.z" else 0.0), key
        else:
            assert key.startswith("output."), key
    bounds = {"losses": 1e-11, "generator_gradient_norms": 1e-8, "discriminator_gradient_norms": 1e-8}
    for key, rounding in bounds.items():
        assert case.content[key] == pytest.approx(reference.content[key], rel=rounding, abs=0), key


def compare(case: golden.Case) -> dict[str, golden.ComparedValue]:
    return {value.name: value for value in golden.compare_case(case)}


@cache
def unmodified(name: str) -> dict[str, golden.ComparedValue]:
    return compare(scale_only_case(name))


@pytest.mark.parametrize("name", CASES)
def test_posterior_losses_and_gradients_equal_the_original(name):
    case = read_case(name)
    values = golden.compare_case(case)
    golden_fields = ("losses", "generator_gradient_norms", "discriminator_gradient_norms")
    assert len(values) == 1 + sum(len(case.content[key]) for key in golden_fields)
    assert [value for value in values if not value.agrees] == []


@pytest.mark.parametrize("name", CASES)
def test_losses_equal_the_original_in_float32(name):
    values = golden.compare_case(read_case(name), torch.float32)
    assert {value.kind for value in values} == {golden.LOSS_FLOAT32}
    assert len(values) == len(golden.LOSS_NAMES)
    assert [value for value in values if not value.agrees] == []


@pytest.mark.parametrize(
    ("module", "function", "value"),
    [
        (losses, "kl_divergence", "loss_kl"),
        (losses, "mel_l1", "loss_mel"),
        (generator, "duration_loss", "loss_duration"),
    ],
)
def test_loss_error_of_one_hundredth_of_a_percent_is_detected(monkeypatch, module, function, value):
    assert unmodified("single_sdp")[value].agrees
    right = getattr(module, function)
    monkeypatch.setattr(module, function, lambda *arguments: 1.0001 * right(*arguments))
    assert not compare(scale_only_case("single_sdp"))[value].agrees


def test_gradient_error_of_a_tenth_of_a_percent_is_detected_although_the_loss_agrees(monkeypatch):
    name = "generator gradient enc_p.proj.weight"
    assert unmodified("single_sdp")[name].agrees
    expand = alignment.expand

    def with_steeper_gradient(*arguments: Tensor) -> Tensor:
        values = expand(*arguments)
        return values + 0.001 * (values - values.detach())

    monkeypatch.setattr(alignment, "expand", with_steeper_gradient)
    modified = compare(scale_only_case("single_sdp"))
    assert modified["loss_kl"].agrees
    assert modified[name].error == pytest.approx(0.001, rel=1e-3)
    assert not modified[name].agrees


def transformers_nll(predictor, hidden, text_mask, speaker, token_durations, noise):
    return predictor(hidden, text_mask, speaker, durations=token_durations.to(hidden.dtype), reverse=False)


def test_duration_loss_in_transformers_direction_is_detected(monkeypatch):
    assert unmodified("single_sdp")["loss_duration"].agrees
    monkeypatch.setattr(generator, "duration_loss", transformers_nll)
    monkeypatch.setattr(torch, "randn", lambda *size, **options: torch.zeros(*size))
    modified = compare(scale_only_case("single_sdp"))["loss_duration"]
    assert modified.ours == pytest.approx(2.596, abs=1e-3)
    assert modified.golden == pytest.approx(1.711, abs=1e-3)
    assert not modified.agrees


def test_missing_gradient_is_detected_although_the_loss_agrees(monkeypatch):
    name = "generator gradient enc_p.proj.weight"
    assert unmodified("multi_sdp")[name].agrees
    expand = alignment.expand
    monkeypatch.setattr(alignment, "expand", lambda *arguments: expand(*arguments).detach())
    modified = compare(scale_only_case("multi_sdp"))
    assert modified["loss_kl"].agrees
    assert not modified[name].agrees


def test_different_posterior_is_detected_and_not_replaced_by_the_golden_one():
    case = scale_only_case("single_sdp")
    shifted = golden.Case(case.name, case.content, {**case.tensors, "output.z": case.tensors["output.z"] + 2e-8})
    values = compare(shifted)
    assert not values["posterior sample, largest difference"].agrees
    assert values["loss_kl"].ours == unmodified("single_sdp")["loss_kl"].ours


def test_nan_never_agrees():
    assert not golden.ComparedValue("loss", 1.0, math.nan, golden.LOSS).agrees
    assert not golden.ComparedValue("norm", 0.0, math.nan, golden.GRADIENT_NORM).agrees
    assert golden.ComparedValue("loss", 1.0, math.nan, golden.LOSS).error == math.inf


def test_norms_that_are_zero_up_to_rounding_agree():
    assert golden.ComparedValue("norm", 3e-17, 8e-10, golden.GRADIENT_NORM).agrees
    assert not golden.ComparedValue("norm", 3e-17, 2e-9, golden.GRADIENT_NORM).agrees
    assert not golden.ComparedValue("norm", 0.0, 1.0, golden.GRADIENT_NORM).agrees


@pytest.mark.parametrize(
    ("kind", "off_by"),
    [(golden.LOSS, 1e-6), (golden.LOSS_FLOAT32, 1e-4), (golden.GRADIENT_NORM, 1e-4), (golden.POSTERIOR, 1e-8)],
)
def test_bounds_equal_those_of_the_reference(kind, off_by):
    assert golden.ComparedValue("one", 1.0, 1 + 0.9 * off_by, kind).agrees
    assert not golden.ComparedValue("one", 1.0, 1 - 1.1 * off_by, kind).agrees


def test_missing_field_or_tensor_is_named():
    case = scale_only_case("single_sdp")
    tensors = {name: tensor for name, tensor in case.tensors.items() if name != "input.ids_slice"}
    with pytest.raises(DataError, match=r"single_sdp has no 'input\.ids_slice'"):
        golden.compare_case(golden.Case(case.name, case.content, tensors))
    del tensors["generator.enc_p.emb.weight"]
    with pytest.raises(ModelError, match=r"text_encoder\.embed_tokens\.weight is missing"):
        golden.compare_case(golden.Case(case.name, case.content, tensors))


def test_directory_without_a_readable_case_is_rejected(tmp_path):
    with pytest.raises(DataError, match="contains no golden case"):
        golden.read_cases(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match=r"broken\.json"):
        golden.read_cases(tmp_path)


def write_case(directory: Path, **fields: object) -> None:
    content = {"losses": {"loss_mel": 1.0}, "generator_gradient_norms": {"enc_p.emb.weight": 1.0}, **fields}
    (directory / "case.json").write_text(json.dumps(content))
    save_file({"output.z": torch.zeros(1)}, directory / "case.safetensors")


def test_case_with_values_of_every_kind_is_read(tmp_path):
    write_case(tmp_path)
    assert [case.name for case in golden.read_cases(tmp_path)] == ["case"]


@pytest.mark.parametrize(
    ("fields", "messages"),
    [
        ({"losses": {"loss_mel": 1.0, "loss_pitch": 2.0}}, ("case.json: losses", "'loss_pitch'", "loss_mel, loss_kl")),
        ({"losses": None}, ("case.json: losses", "expected an object")),
        ({"losses": {}}, ("case.json", "losses: no values", "expected at least one loss")),
        (
            {"generator_gradient_norms": {}},
            ("case.json", "generator_gradient_norms and discriminator_gradient_norms: no values", "the gradient norm"),
        ),
    ],
    ids=["unknown loss", "missing losses", "no losses", "no gradient norms"],
)
def test_invalid_golden_values_exit_with_2_and_name_file_and_field(tmp_path, capsys, fields, messages):
    write_case(tmp_path, **fields)
    assert main(["check", "--golden", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    for message in messages:
        assert message in error
