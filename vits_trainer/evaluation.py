"""Validation: held-out clips through the same objective, with the same noise and segments each time."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vits_trainer.audio import log_mel, spectrogram
from vits_trainer.data import ClipReader, held_out_places, load
from vits_trainer.discriminator import Discriminator
from vits_trainer.generator import Generator
from vits_trainer.metrics import RunningMeans, means
from vits_trainer.objective import Objective
from vits_trainer.runtime import Runtime


class Validation:
    """The held-out clips, and how to judge networks by them."""

    def __init__(
        self,
        runtime: Runtime,
        objective: Objective,
        reader: ClipReader,
        rows: Sequence[int],
        batch_size: int,
        seed: int,
    ) -> None:
        self.runtime = runtime
        self.objective = objective
        self.reader = reader
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed

    def run(self, generator: Generator, discriminator: Discriminator | None) -> dict[str, float]:
        """Mean of each generator loss over the held-out clips, as ``validation/<loss>``. Runs on every rank.

        Leaves the random generators as they were, and the networks in the mode they were in.
        """
        if not self.rows:
            return {}
        places = held_out_places(self.rows, self.batch_size, self.runtime.rank, self.runtime.world_size)
        training = generator.training
        generator.eval()
        running = RunningMeans()
        devices = [self.runtime.device] if self.runtime.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(self.seed)
            for batch in load(self.reader, places, workers=0):
                with self.runtime.autocast():
                    comparison = self.objective.synthesize(generator, batch.to(self.runtime.device))
                    losses = self.objective.generator_losses(discriminator, comparison)
                running.add(losses, weight=len(batch.clip_ids))
        generator.train(training)
        names = self.objective.generator_loss_names
        found = means(names, self.runtime.sum(running.state(names, self.runtime.device)))
        return {f"validation/{name}": value for name, value in found.items()}

    def constant_frame_mel(self) -> float:
        """Mel L1 of the best constant: each band's median over the frames of these very clips.

        What a voice must beat to have learnt anything: no single spectrum is closer to the clips.
        """
        mels = []
        for place in held_out_places(self.rows, 1, 0, 1):
            for batch in load(self.reader, [place], workers=0):
                magnitude = spectrogram(batch.waveform, batch.frame_lengths, self.objective.spec)
                mels.append(log_mel(magnitude, self.objective.spec)[0])
        frames: Tensor = torch.cat(mels, dim=1)
        return float((frames - frames.median(dim=1, keepdim=True).values).abs().mean())
