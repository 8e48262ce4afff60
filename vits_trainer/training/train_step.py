"""What one micro-batch is to both networks: first the discriminators learn from it, then the generator."""

from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from vits_trainer.data.dataset import Batch
from vits_trainer.distributed.runtime import Runtime
from vits_trainer.distributed.stragglers import AloneTime
from vits_trainer.models.discriminator import Discriminator
from vits_trainer.training.objective import Normalisers, Objective, frozen
from vits_trainer.training.optim import Learner


class Turns:
    """The two networks as they learn from one another."""

    def __init__(
        self,
        runtime: Runtime,
        objective: Objective,
        generator: Learner,
        discriminator: Discriminator | None,
        discriminator_learner: Learner | None,
        compiled: bool = False,
    ) -> None:
        """Args:
        runtime: device and precision.
        objective: whose losses they learn by.
        generator: as it is trained.
        discriminator: the judge itself, not wrapped; None under the mel objective.
        discriminator_learner: the same, as it is trained.
        compiled: whether the networks are: a compiled one would be compiled again for each state of the cache of
            its weights.
        """
        self.runtime = runtime
        self.objective = objective
        self.generator = generator
        self.discriminator = discriminator
        self.discriminator_learner = discriminator_learner
        self.compiled = compiled
        self.alone = AloneTime(runtime.device)
        """What of an update waits for no other rank."""

    @property
    def learners(self) -> list[Learner]:
        """Both networks as they are trained; the generator alone under the mel objective."""
        return [self.generator, *([self.discriminator_learner] if self.discriminator_learner else [])]

    def take(
        self, batch: Batch, normalisers: Normalisers, discriminators_alone: bool, closes: bool, rate: float | None
    ) -> dict[str, Tensor]:
        """Each network's turn: its share of the update's losses, and of the norms of its gradients. Runs on every rank.

        Args:
            batch: on the CPU.
            normalisers: of the update.
            discriminators_alone: the generator's losses are only measured.
            closes: whether the ranks' gradients meet.
            rate: to step with; None where the networks only accumulate.
        """
        found: dict[str, Tensor] = {}
        networks = [learner.network for learner in self.learners]
        with self.runtime.accumulating(*networks, synchronise=closes):
            batch = batch.to(self.runtime.device)
            with self.runtime.autocast(), torch.set_grad_enabled(not discriminators_alone):
                comparison = self.objective.synthesize(self.generator.network, batch, normalisers=normalisers)
            if self.discriminator_learner is not None:
                with self.runtime.autocast():
                    d_losses = self.objective.discriminator_losses(self.discriminator_learner.network, comparison)
                found |= _named("discriminator", d_losses) | self._learn(
                    self.discriminator_learner, d_losses, closes, rate
                )
            judging = frozen(self.discriminator) if self.discriminator else nullcontext()
            weights_once = nullcontext() if self.compiled else parametrize.cached()
            with self.runtime.autocast(), judging, weights_once, torch.set_grad_enabled(not discriminators_alone):
                g_losses = self.objective.generator_losses(self.discriminator, comparison)
            found |= _named("generator", g_losses)
            if not discriminators_alone:
                found |= self._learn(self.generator, g_losses, closes, rate)
        return found

    def _learn(
        self, learner: Learner, losses: dict[str, Tensor], closes: bool, rate: float | None
    ) -> dict[str, Tensor]:
        """One network's backward, and its step where there is a ``rate``: its share of the gradient's norm, then."""
        with self.alone.interrupted() if closes else nullcontext():
            # DistributedDataParallel gives the mean of the ranks' gradients; the losses are shares of a sum.
            learner.backward(losses["total"] * self.runtime.world_size)
        if rate is None:
            return {}
        return {f"grad_norm/{learner.name}": learner.update(rate) / self.runtime.world_size}


def _named(network: str, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Losses under the names they are logged by."""
    return {f"{network}/{name}": loss for name, loss in losses.items()}
