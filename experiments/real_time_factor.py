"""Parameters, operations and real-time factors of voices: ``python -m experiments.real_time_factor [RECIPE ...]``.

Random weights, one thread: the decoder in PyTorch, the whole voice in PyTorch and in onnxruntime, on one text of 151
tokens. CPU time, medians over rounds that alternate between the voices, so that other load affects all of them alike.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode
from transformers import VitsModel

from vits_trainer.config.architecture import Architecture
from vits_trainer.config.serialization import recipe_path
from vits_trainer.models.conversion.onnx import OnnxVoice, compare_onnx, export_onnx
from vits_trainer.models.initialization import new_model
from vits_trainer.models.pretrained import audio_spec, fold_weight_norm, inference_form
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


def decoder_call(voice: VitsModel) -> Callable[[], object]:
    spec, decoder = audio_spec(voice.config), fold_weight_norm(voice).decoder
    latents = torch.randn(1, voice.config.flow_size, SECONDS * spec.sampling_rate // spec.hop)
    return lambda: decoder(latents)


def whole_voice_calls(voice: VitsModel, folder: Path) -> tuple[Callable[[], object], Callable[[], object], float]:
    """Returns calls of both players, after they agreed, and the seconds of speech."""
    path = folder / "voice.onnx"
    with torch.inference_mode(mode=False):
        export_onnx(voice, build_tokenizer(["abc"]), path)
        speech_s = compare_onnx(voice, path, rounds=1).audio_s
    plain, player = inference_form(voice), OnnxVoice(path)
    plain.noise_scale = plain.noise_scale_duration = 0.0
    ids = np.zeros(151, dtype=np.int64)
    ids[1::2] = 1 + np.arange(len(ids[1::2])) % (voice.config.vocab_size - 1)
    tokens = torch.from_numpy(ids)[None]
    return lambda: plain(tokens), lambda: player.speak(ids, 0.0, 1.0, 0.0), speech_s


def compare(recipes: list[str], rounds: int) -> None:
    """Prints a table row for each recipe's voice."""
    torch.set_num_threads(1)
    voices = {recipe: voice_of(recipe) for recipe in recipes}
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        calls, speech_s = {}, {}
        for recipe, voice in voices.items():
            place = Path(folder) / recipe
            place.mkdir()
            *whole, speech_s[recipe] = whole_voice_calls(voice, place)
            calls[recipe] = [decoder_call(voice), *whole]
        times: dict[str, list[list[float]]] = {recipe: [] for recipe in recipes}
        for _ in range(rounds + 1):
            for recipe, players in calls.items():
                times[recipe].append([seconds(call) for call in players])
        for recipe, voice in voices.items():
            with FlopCounterMode(display=False) as flops:
                calls[recipe][0]()
            parameters = sum(parameter.numel() for parameter in voice.decoder.parameters())
            medians = map(statistics.median, zip(*times[recipe][1:], strict=True))
            lengths_s = (SECONDS, speech_s[recipe], speech_s[recipe])
            rates = [median / length for median, length in zip(medians, lengths_s, strict=True)]
            print(
                f"| {recipe} | {parameters / 1e6:.1f} M | {flops.get_total_flops() / SECONDS / 1e9:.1f} | "
                f"{' | '.join(f'{rate:.3f}' for rate in rates)} |",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    compare(list(asked.recipes), asked.rounds)
