"""The potential of `interatomic_potential.py` in PyTorch, trained as many potentials are today."""

import interatomic_potential_data as common
import torch
from torch import nn
from torch.optim import swa_utils

torch.set_num_threads(1)  # what is so small loses more by sharing than it gains


class Interaction(nn.Module):
    def __init__(self):
        super().__init__()
        self.radial = nn.Sequential(
            nn.Linear(common.RADIAL, common.CHANNELS, bias=False),
            nn.SiLU(),
            nn.Linear(common.CHANNELS, common.CHANNELS, bias=False),
        )
        self.mix = nn.Linear(common.CHANNELS, common.CHANNELS)

    def forward(self, h, radial, neighbours):
        messages = (self.radial(radial) * h[neighbours]).sum(1)
        return h + nn.functional.silu(self.mix(messages))


class Potential(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(len(common.LATTICE), common.CHANNELS)
        self.interactions = nn.ModuleList([Interaction(), Interaction()])
        self.readout = nn.Sequential(
            nn.Linear(common.CHANNELS, common.CHANNELS),
            nn.SiLU(),
            nn.Linear(common.CHANNELS, 1, bias=False),
        )

    def forward(self, structures):
        """Energies and forces; the atoms of all structures are nodes of one graph."""
        positions = structures.positions.flatten(0, 1).requires_grad_()
        first = common.ATOMS * torch.arange(len(structures.energy))[:, None, None]
        neighbours = (structures.neighbours + first).flatten(0, 1)
        vectors = positions[neighbours] + structures.shifts.flatten(0, 1) - positions[:, None]
        r = torch.linalg.norm(vectors, dim=-1, keepdim=True) / common.CUTOFF
        waves = torch.sin(torch.pi * torch.arange(1, common.RADIAL + 1, dtype=r.dtype) * r)
        radial = waves / r * (1 - r**2).clamp(min=0) ** 3
        h = self.embedding(structures.species.flatten())
        for interaction in self.interactions:
            h = interaction(h, radial, neighbours)
        energies = self.readout(h).reshape(-1, common.ATOMS).sum(1)
        (gradient,) = torch.autograd.grad(energies.sum(), positions, create_graph=True)
        return energies, -gradient.reshape(-1, common.ATOMS, 3)


def loss_of(predicted, data):
    energies, forces = predicted
    huber = nn.functional.huber_loss
    per_atom = huber(energies / common.ATOMS, data.energy / common.ATOMS, delta=common.DELTA)
    return per_atom + 10 * huber(forces, data.forces, delta=common.DELTA)


class Training:
    """What a training script holds, and an epoch of it."""

    def __init__(self, data, dtype):
        dtype = getattr(torch, dtype)
        cast = lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor
        self.data = data._make(cast(torch.from_numpy(array)) for array in data)
        torch.manual_seed(0)
        self.model = Potential().to(dtype)
        self.average = swa_utils.AveragedModel(
            self.model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(common.EMA)
        )
        decay, no_decay = [], []  # the optimizer's order is not that of the model
        for name, parameter in self.model.named_parameters():
            decayed = name.startswith("interactions") and name.endswith("weight")
            (decay if decayed else no_decay).append(parameter)
        self.optimizer = torch.optim.Adam(
            [{"params": decay, "weight_decay": common.DECAY}, {"params": no_decay}],
            lr=common.LEARNING_RATE,
            amsgrad=True,
        )
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer,
            factor=common.FACTOR,
            patience=common.PATIENCE,
            threshold=common.THRESHOLD,
        )

    def epoch(self, number):
        """Trains for an epoch; returns the validation loss of the averaged parameters."""
        for batch in common.batches_of(number, len(self.data.energy) - common.VALIDATION):
            structures = self.data._make(array[common.VALIDATION :][batch] for array in self.data)
            self.optimizer.zero_grad()
            loss_of(self.model(structures), structures).backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), common.CLIP)
            self.optimizer.step()
            self.average.update_parameters(self.model)
        validation = self.data._make(array[: common.VALIDATION] for array in self.data)
        loss = loss_of(self.average(validation), validation).item()
        self.scheduler.step(loss)
        return loss

    def forces(self):
        """Forces on the validation structures."""
        _, forces = self.average(self.data._make(array[: common.VALIDATION] for array in self.data))
        return forces.detach().numpy()

    def save(self, file):
        content = {
            "model": self.model.state_dict(),
            "average": self.average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.scheduler.state_dict(),
        }
        torch.save(content, file)


if __name__ == "__main__":
    training = Training(common.make_structures(96), "float32")
    for number in range(5):
        print(f"epoch {number}: validation loss {training.epoch(number):.4f}")
