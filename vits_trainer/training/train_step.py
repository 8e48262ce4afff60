"""What one micro-batch is to both networks: first the discriminators learn from it, then the generator."""

from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from vits_trainer.data.dataset import Batch
from vits_trainer.distributed.runtime import Runtime
from vits_trainer.distributed.stragglers import ComputeTimer
from vits_trainer.models.discriminator import Discriminator
from vits_trainer.training.objective import LossDenominators, Objective, frozen
from vits_trainer.training.optim import NetworkOptimizer


class GanTrainStep:
    """The two networks as they learn from one another."""

    def __init__(
        self,
        runtime: Runtime,
        objective: Objective,
        generator: NetworkOptimizer,
        discriminator: Discriminator | None,
        discriminator_learner: NetworkOptimizer | None,
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
        self.compute_timer = ComputeTimer(runtime.device)
        """What of an update waits for no other rank."""

    @property
    def learners(self) -> list[NetworkOptimizer]:
        """Both networks as they are trained; the generator alone under the mel objective."""
        return [self.generator, *([self.discriminator_learner] if self.discriminator_learner else [])]

    def __call__(
        self,
        batch: Batch,
        normalisers: LossDenominators,
        discriminator_only: bool,
        sync_gradients: bool,
        learning_rate: float | None,
    ) -> dict[str, Tensor]:
        """Each network's turn: its share of the update's losses, and of the norms of its gradients. Runs on every rank.

        Args:
            batch: on the CPU.
            normalisers: of the update.
            discriminator_only: the generator's losses are only measured.
            sync_gradients: whether the ranks' gradients meet.
            learning_rate: to step with; None where the networks only accumulate.
        """
        found: dict[str, Tensor] = {}
        networks = [learner.network for learner in self.learners]
        with self.runtime.accumulate(*networks, sync_gradients=sync_gradients):
            batch = batch.to(self.runtime.device)
            with self.runtime.autocast(), torch.set_grad_enabled(not discriminator_only):
                comparison = self.objective.generator_forward(self.generator.network, batch, normalisers=normalisers)
            if self.discriminator_learner is not None:
                with self.runtime.autocast():
                    d_losses = self.objective.discriminator_losses(self.discriminator_learner.network, comparison)
                found |= _named("discriminator", d_losses) | self._update_network(
                    self.discriminator_learner, d_losses, sync_gradients, learning_rate
                )
            judging = frozen(self.discriminator) if self.discriminator else nullcontext()
            weights_once = nullcontext() if self.compiled else parametrize.cached()
            with self.runtime.autocast(), judging, weights_once, torch.set_grad_enabled(not discriminator_only):
                g_losses = self.objective.generator_losses(self.discriminator, comparison)
            found |= _named("generator", g_losses)
            if not discriminator_only:
                found |= self._update_network(self.generator, g_losses, sync_gradients, learning_rate)
        return found

    def _update_network(
        self, learner: NetworkOptimizer, losses: dict[str, Tensor], sync_gradients: bool, learning_rate: float | None
    ) -> dict[str, Tensor]:
        """Backward pass of one network, and its optimizer step if ``learning_rate`` is given; then returns the norm."""
        with self.compute_timer.interrupted() if sync_gradients else nullcontext():
            # DistributedDataParallel gives the mean of the ranks' gradients; the losses are shares of a sum.
            learner.backward(losses["total"] * self.runtime.world_size)
        if learning_rate is None:
            return {}
        return {f"grad_norm/{learner.name}": learner.step(learning_rate) / self.runtime.world_size}


def _named(network: str, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Losses under the names they are logged by."""
    return {f"{network}/{name}": loss for name, loss in losses.items()}
