"""Measures what each option of the objective costs per update.

``python -m experiments.option_costs [--batch_size 2] [--clip_s 2] [--rounds 3] [--options NAME ...]``

On the CPU: CPU time of an update as a ratio to an update without options, the two alternating; median of the rounds. On
a CUDA device, also the stand-in of ``experiments.device_operations`` (``--batch_size 16 --clip_s 6 --precision bf16``):
operations, peak memory and TFLOP per update. The speech encoder has the size of WavLM base and random weights.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel

from experiments import device_operations
from vits_trainer.config.architecture import DiscriminatorShape
from vits_trainer.config.tools import BenchmarkConfig
from vits_trainer.config.train import LossWeights
from vits_trainer.diagnostics import benchmark
from vits_trainer.distributed.runtime import Runtime
from vits_trainer.models.discriminator import Discriminator
from vits_trainer.models.speech_encoder import SpeechEncoder

RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
BASELINE = "none"
OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    BASELINE: dict,
    "multi_scale_mel": lambda: {"weights": LossWeights(mel=0, multi_scale_mel=91)},
    "resolutions": lambda: {"other": Discriminator(DiscriminatorShape(resolutions=RESOLUTIONS))},
    "encoder": lambda: {"other": on_encoder(())},
    "encoder, layer 6": lambda: {"other": on_encoder((6,))},
    "kl_warmup": lambda: {"kl_share": 0.5},
    "alignment_noise": lambda: {"alignment_noise": 0.01},
}


def on_encoder(layers: tuple[int, ...]) -> Discriminator:
    """Discriminators with one on an encoder of WavLM base's size."""
    model = WavLMModel(WavLMConfig())
    encoder = SpeechEncoder(model, Wav2Vec2FeatureExtractor(do_normalize=False), layers, voice_rate_hz=16000)
    discriminator = Discriminator(encoder_inputs=encoder.inputs)
    discriminator.attach_encoder(encoder)
    return discriminator


def update_with(option: str, config: BenchmarkConfig, runtime: Runtime) -> Callable[[], object]:
    """Returns a function that runs one update with an option."""
    changes = OPTIONS[option]()
    kl_share, alignment_noise = changes.pop("kl_share", 1.0), changes.pop("alignment_noise", 0.0)
    step, update = benchmark.our_update(config, runtime, **changes)
    step.objective.kl_share = kl_share
    step.generator_optimizer.network.alignment_noise = alignment_noise
    return update


def ratios(baseline: Callable[[], object], update: Callable[[], object], rounds: int) -> Iterator[float]:
    """CPU time of ``update`` relative to ``baseline``, of each round after a first one that warms up."""
    for number in range(rounds + 1):
        spent_s = []
        for run in (baseline, update):
            start_s = time.process_time()
            run()
            spent_s.append(time.process_time() - start_s)
        if number:
            yield spent_s[1] / spent_s[0]


def device_costs(update: Callable[[], object]) -> str:
    """Operations, peak memory, and floating-point operations of convolutions and matrix products of an update."""
    for _ in range(2):
        update()
    torch.cuda.reset_peak_memory_stats()
    before = device_operations.operations()
    update()
    counted = device_operations.operations() - before
    memory_gib = torch.cuda.max_memory_allocated() / 2**30
    with FlopCounterMode(display=False) as flops:
        update()
    return f"{counted} operations | {memory_gib:.2f} GiB | {flops.get_total_flops() / 1e12:.2f} TFLOP"


def main(config: BenchmarkConfig, options: list[str], rounds: int) -> None:
    runtime = Runtime(config.precision, 1)
    on_cpu = runtime.device.type == "cpu"
    baseline = update_with(BASELINE, config, runtime) if on_cpu else None
    for option in options:
        update = update_with(option, config, runtime)
        if baseline is None:
            cost = device_costs(update)
        else:
            measured = list(ratios(baseline, update, rounds))
            cost = f"{statistics.median(measured):.3f} ({min(measured):.3f} to {max(measured):.3f})"
        print(f"| {option} | {cost} |", flush=True)
        del update
        gc.collect()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="mms")
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--clip_s", type=float, default=2.0)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--cuda_graphs", type=lambda value: value == "true", default=False)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--options", nargs="*", choices=OPTIONS, default=list(OPTIONS))
    asked = vars(parser.parse_args())
    wanted, repeats = asked.pop("options"), asked.pop("rounds")
    main(BenchmarkConfig(tokens=int(30 * asked["clip_s"]), **asked), wanted, repeats)
