"""One GAN training step on a micro-batch: discriminator update, then generator update."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from vits_trainer.config.framing import AudioSpec
from vits_trainer.data.dataset import Batch
from vits_trainer.distributed.runtime import Runtime
from vits_trainer.distributed.stragglers import ComputeTimer
from vits_trainer.models.discriminator import Discriminator
from vits_trainer.models.weight_cast import cast_weights
from vits_trainer.training.objective import LossDenominators, Objective, frozen
from vits_trainer.training.optim import NetworkOptimizer
from vits_trainer.utils.errors import OutOfMemoryError
from vits_trainer.utils.strings import counted

if TYPE_CHECKING:
    from vits_trainer.models.generator import Generator


class GanTrainStep:
    """Computes the losses of both networks on a micro-batch, and updates them."""

    def __init__(
        self,
        runtime: Runtime,
        objective: Objective,
        generator_optimizer: NetworkOptimizer,
        discriminator: Discriminator | None,
        discriminator_optimizer: NetworkOptimizer | None,
        compiled: bool = False,
    ) -> None:
        """Args:
        runtime: device and precision.
        objective: the losses.
        generator_optimizer: of the generator.
        discriminator: the unwrapped network; None for the mel objective.
        discriminator_optimizer: of the discriminator; None for the mel objective.
        compiled: whether the networks are compiled. If so, the compiled code casts the weights.
        """
        self.runtime = runtime
        self.objective = objective
        self.generator_optimizer = generator_optimizer
        self.discriminator = discriminator
        self.discriminator_optimizer = discriminator_optimizer
        self.compiled = compiled
        self.compute_timer = ComputeTimer(runtime.device)
        """Time of the update outside of collectives."""

    @property
    def optimizers(self) -> list[NetworkOptimizer]:
        """Of both networks; of the generator only under the mel objective."""
        return [self.generator_optimizer, *([self.discriminator_optimizer] if self.discriminator_optimizer else [])]

    def __call__(
        self,
        batch: Batch,
        denominators: LossDenominators,
        discriminator_only: bool,
        sync_gradients: bool,
        learning_rate: float | Tensor | None,
    ) -> dict[str, Tensor]:
        """Trains both networks on a micro-batch. Runs on every rank.

        Args:
            batch: on the CPU.
            denominators: of the update.
            discriminator_only: compute the generator's losses without gradients.
            sync_gradients: whether gradients are averaged over the ranks.
            learning_rate: of the optimizer step; None to accumulate gradients only.

        Returns:
            This batch's shares of the update's losses and, after an optimizer step, this rank's share of the gradient
            norms.
        """
        values: dict[str, Tensor] = {}
        networks = [optimizer.network for optimizer in self.optimizers]
        with self.runtime.accumulate(*networks, sync_gradients=sync_gradients):
            batch = batch.to(self.runtime.device)
            with (
                self.runtime.autocast(),
                torch.set_grad_enabled(not discriminator_only),
                self._cast(self._generator_networks),
            ):
                pair = self.objective.generator_forward(
                    self.generator_optimizer.network, batch, denominators=denominators
                )
            if self.discriminator_optimizer is not None:
                with self.runtime.autocast(), self._cast(self._discriminators):
                    d_losses = self.objective.discriminator_losses(self.discriminator_optimizer.network, pair)
                values |= _prefixed("discriminator", d_losses) | self._update_network(
                    self.discriminator_optimizer, d_losses, sync_gradients, learning_rate
                )
            without_gradients = frozen(self.discriminator) if self.discriminator else nullcontext()
            with (
                self.runtime.autocast(),
                without_gradients,
                self._cast(self._discriminators),
                torch.set_grad_enabled(not discriminator_only),
            ):
                g_losses = self.objective.generator_losses(self.discriminator, pair)
            values |= _prefixed("generator", g_losses)
            if not discriminator_only:
                values |= self._update_network(self.generator_optimizer, g_losses, sync_gradients, learning_rate)
        return values

    @property
    def _generator_networks(self) -> list[nn.Module]:
        """Those whose weights are worth casting together."""
        generator = cast("Generator", self.runtime.accelerator.unwrap_model(self.generator_optimizer.network))
        return generator.autocast_networks if self.runtime.autocasts else []

    @property
    def _discriminators(self) -> Iterable[nn.Module]:
        return self.discriminator.discriminators if self.discriminator else ()

    def _cast(self, networks: Iterable[nn.Module]) -> AbstractContextManager[None]:
        return nullcontext() if self.compiled else cast_weights(networks)

    def _update_network(
        self,
        optimizer: NetworkOptimizer,
        losses: dict[str, Tensor],
        sync_gradients: bool,
        learning_rate: float | Tensor | None,
    ) -> dict[str, Tensor]:
        """Runs the backward pass of one network, and its optimizer step if ``learning_rate`` is given.

        Returns:
            This rank's share of the gradient norm, after an optimizer step.
        """
        with self.compute_timer.interrupted() if sync_gradients else nullcontext():
            # DistributedDataParallel averages the ranks' gradients; the losses are shares of a sum.
            optimizer.backward(losses["total"] * self.runtime.num_processes)
        if learning_rate is None:
            return {}
        return {f"grad_norm/{optimizer.name}": optimizer.step(learning_rate) / self.runtime.num_processes}


def out_of_memory_error(batch: Batch, spec: AudioSpec, device: torch.device) -> OutOfMemoryError:
    """Returns the error for a batch that does not fit into memory: its clips' lengths, and the flags that help."""
    lengths_s = sorted((batch.frame_lengths * spec.hop / spec.sampling_rate).tolist())
    return OutOfMemoryError(
        f"Out of memory on {device} with {counted(len(lengths_s), 'clip')} of "
        f"{', '.join(f'{length:.1f}' for length in lengths_s)} s. Lower --batch_size (and raise "
        "--gradient_accumulation_steps as much), use --gradient_checkpointing true or --precision bf16, lower "
        "--segment_frames, or prepare the data with a lower --max_duration_s."
    )


def _prefixed(network: str, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the losses under their metric names."""
    return {f"{network}/{name}": loss for name, loss in losses.items()}
