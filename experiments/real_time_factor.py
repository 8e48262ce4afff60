"""Parameters, operations and real-time factors of voices: ``python -m experiments.real_time_factor [RECIPE ...]``.

Random weights, one thread: the decoder in PyTorch by CPU time, medians over rounds that alternate between the voices,
so that other load on the machine affects all of them alike; the whole voice in both by ``compare_onnx``.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode
from transformers import VitsModel

from vits_trainer.config.architecture import Architecture
from vits_trainer.config.serialization import recipe_path
from vits_trainer.models.conversion.onnx import compare_onnx, export_onnx
from vits_trainer.models.initialization import new_model
from vits_trainer.models.pretrained import audio_spec, fold_weight_norm
from vits_trainer.text.tokenizer import build_tokenizer

RECIPES = ("from_scratch", "light", "from_scratch_22k", "light_22k", "tiny")
COLUMNS = (
    "recipe", "parameters of the decoder", "GFLOP per second of speech, decoder", "real-time factor, decoder, PyTorch",
    "whole voice, PyTorch", "whole voice, onnxruntime",
)  # fmt: skip
SECONDS = 3


def voice_of(recipe: str) -> VitsModel:
    values = yaml.safe_load(recipe_path(recipe).read_text(encoding="utf-8"))["architecture"]
    lists = {name: value for name, value in values.items() if isinstance(value, list)}
    tuples = {name: tuple(tuple(v) if isinstance(v, list) else v for v in value) for name, value in lists.items()}
    return new_model(Architecture(**values | tuples), build_tokenizer(["abc"]), [])


def seconds(call: Callable[[], object]) -> float:
    start_s = time.process_time()
    call()
    return time.process_time() - start_s


def compare(recipes: list[str], rounds: int) -> None:
    """Prints a table row for each recipe's voice."""
    torch.set_num_threads(1)
    voices = {recipe: voice_of(recipe) for recipe in recipes}
    calls: dict[str, Callable[[], object]] = {}
    times: dict[str, list[float]] = {recipe: [] for recipe in recipes}
    for recipe, voice in voices.items():
        spec, decoder = audio_spec(voice.config), fold_weight_norm(voice).decoder
        latents = torch.randn(1, voice.config.flow_size, SECONDS * spec.sampling_rate // spec.hop)
        calls[recipe] = lambda decoder=decoder, latents=latents: decoder(latents)
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    with torch.inference_mode():
        for _ in range(rounds + 1):
            for recipe, call in calls.items():
                times[recipe].append(seconds(call))
        for recipe, voice in voices.items():
            with FlopCounterMode(display=False) as flops:
                calls[recipe]()
            parameters = sum(parameter.numel() for parameter in voice.decoder.parameters())
            rate = statistics.median(times[recipe][1:]) / SECONDS
            print(
                f"| {recipe} | {parameters / 1e6:.1f} M | {flops.get_total_flops() / SECONDS / 1e9:.1f} | {rate:.3f} | "
                f"{' | '.join(whole_voice(voice))} |",
                flush=True,
            )


def whole_voice(voice: VitsModel) -> list[str]:
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(mode=False):
        path = Path(folder) / "voice.onnx"
        export_onnx(voice, build_tokenizer(["abc"]), path)
        found = compare_onnx(voice, path)
    return [f"{value:.3f}" for value in (found.torch_s / found.audio_s, found.onnx_s / found.audio_s)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    compare(list(asked.recipes), asked.rounds)
