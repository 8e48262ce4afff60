"""Compares the gradient of ranks with unequal clips with that of the combined batch, in float64: for test_launch.py.

Prints for each network: the synchronizations of a step with two micro-batches, and the distance of the ranks' gradient
from that of the combined batch, relative to its norm.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from tests.support.small_networks import SIZES, first_segments
from vits_trainer.config.architecture import Architecture, DiscriminatorShape
from vits_trainer.config.train import LossWeights
from vits_trainer.data.dataset import PreparedClipDataset
from vits_trainer.data.prepared import open_prepared
from vits_trainer.data.sampler import MicroBatchSpec
from vits_trainer.distributed.runtime import Runtime
from vits_trainer.models.discriminator import Discriminator
from vits_trainer.models.generator import Generator
from vits_trainer.models.initialization import new_model
from vits_trainer.models.pretrained import audio_spec
from vits_trainer.text.tokenizer import build_tokenizer
from vits_trainer.training.objective import LossDenominators, Objective, frozen

PARTS = [[(0, 1, 2), (3,)], [(4,), ()]]
"""Rows of each rank's two micro-batches: five unequal clips, and a placeholder."""


def gradient(network: nn.Module) -> Tensor:
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in network.parameters()])


def main(data_dir: Path) -> None:
    runtime = Runtime("fp32", 2)
    prepared = open_prepared(data_dir)
    tokenizer = build_tokenizer(prepared.rows.text)
    torch.manual_seed(0)
    model = new_model(Architecture(**SIZES), tokenizer, [])
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    generator = Generator(model.double(), "posterior", 16).eval()
    generator.noise = torch.zeros_like
    generator.forward = first_segments(generator)
    discriminator = Discriminator(DiscriminatorShape((2, 3), 8)).double().eval()
    spec = audio_spec(model.config)
    objective, reader = Objective("vits", LossWeights(), spec, 16), PreparedClipDataset(prepared, tokenizer, spec, None)

    def batches(parts: list[tuple[int, ...]]) -> list:
        read = [reader[MicroBatchSpec(rows, 0, 0, rows == parts[-1])] for rows in parts]
        moved = [batch.to(runtime.device) for batch in read]
        return [replace(batch, waveform=batch.waveform.double()) for batch in moved]

    def step(networks: dict[str, nn.Module], own: list, counts: LossDenominators, scale: float) -> dict[str, Tensor]:
        for batch in own:
            with runtime.accumulate(*networks.values(), sync_gradients=batch is own[-1]):
                pair = objective.generator_forward(networks["generator"], batch, denominators=counts)
                (objective.discriminator_losses(networks["discriminator"], pair)["total"] * scale).backward()
                with frozen(discriminator):
                    (objective.generator_losses(discriminator, pair)["total"] * scale).backward()
        return {name: gradient(network) for name, network in networks.items()}

    all_clips = batches([tuple(row for rank in PARTS for rows in rank for row in rows)])
    counts = objective.denominators(all_clips[0])
    # Not wrapped yet: each rank computes the combined batch by itself.
    pair = objective.generator_forward(generator, all_clips[0], denominators=counts)
    objective.discriminator_losses(discriminator, pair)["total"].backward()
    with frozen(discriminator):
        objective.generator_losses(discriminator, pair)["total"].backward()
    combined = {"generator": gradient(generator), "discriminator": gradient(discriminator)}
    for network in (generator, discriminator):
        network.zero_grad(set_to_none=True)
    networks = {"generator": runtime.prepare_model(generator), "discriminator": runtime.prepare_model(discriminator)}
    calls = dict.fromkeys(networks, 0)
    for name, network in networks.items():
        network.register_comm_hook(None, _counting(calls, name))
    own = batches(PARTS[runtime.process_index])
    step(networks, own[:1], counts, runtime.num_processes)  # the first pass has to synchronize gradients
    buckets = dict(calls)
    for network in networks.values():
        network.zero_grad(set_to_none=True)
    calls.update(dict.fromkeys(calls, 0))
    gradients = step(networks, own, counts, runtime.num_processes)
    if runtime.is_main_process:
        for name in networks:
            distance = ((gradients[name] - combined[name]).norm() / combined[name].norm()).item()
            print(f"{name} {calls[name]} of {buckets[name]} {distance:.2e}", flush=True)
    runtime.close()


def _counting(calls: dict[str, int], name: str):
    def hook(state: object, bucket: torch.distributed.GradBucket) -> torch.futures.Future[Tensor]:
        calls[name] += 1
        return allreduce_hook(None, bucket)

    return hook


if __name__ == "__main__":
    main(Path(sys.argv[1]))
