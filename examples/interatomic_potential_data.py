"""What both halves of `interatomic_potential.py` have in common: settings and structures."""

from typing import Any, NamedTuple

import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.neighborlist import neighbor_list

LATTICE = {"Cu": 3.61, "Ni": 3.52, "Al": 4.05, "Pd": 3.89}  # constants in Å
ATOMS, CUTOFF, CHANNELS, RADIAL = 8, 4.5, 24, 8
BATCH, VALIDATION = 8, 48
# Of Huber losses: in eV and eV/Å. With 0.01, the size of the errors, the gradients of the last
# epochs are little more than signs, and a difference in the last digit grows tenfold an epoch.
DELTA = 0.1
LEARNING_RATE, DECAY, CLIP, EMA = 0.005, 1e-6, 10.0, 0.99
FACTOR, PATIENCE, THRESHOLD = 0.5, 1, 0.1  # of ReduceLROnPlateau


class Structures(NamedTuple):
    positions: Any  # (atoms, 3)
    species: Any  # (atoms,)
    senders: Any  # (edges,) of neighbours within the cutoff, in periodic images, too
    receivers: Any
    shifts: Any  # (edges, 3), from the sender in the cell to its image
    energy: Any  # in eV, without the energies of single atoms
    forces: Any  # (atoms, 3), in eV/Å


def make_structures(number, seed=0):
    """Cells of eight atoms: random elements and lattice constants, and every atom off its place."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(number):
        elements = rng.choice([*LATTICE], size=ATOMS)
        constant = np.mean([LATTICE[element] for element in elements]) * rng.uniform(0.97, 1.03)
        atoms = bulk("Cu", "fcc", a=constant).repeat(2)
        atoms.symbols = elements
        atoms.positions += rng.normal(scale=0.1, size=(ATOMS, 3))
        atoms.calc = EMT()
        receivers, senders, images = neighbor_list("ijS", atoms, CUTOFF)
        species = np.array([[*LATTICE].index(element) for element in elements])
        edges = senders, receivers, images @ atoms.cell.array
        labels = atoms.get_potential_energy(), atoms.get_forces()
        rows.append(Structures(atoms.positions, species, *edges, *labels))
    # All get as many edges: others lead from an atom to itself, two cutoffs away, where the
    # network sees nothing.
    most = max(len(row.senders) for row in rows)
    for n, row in enumerate(rows):
        pad = (0, most - len(row.senders))
        shifts = np.pad(row.shifts, [pad, (0, 0)], constant_values=2 * CUTOFF)
        rows[n] = row._replace(
            senders=np.pad(row.senders, pad), receivers=np.pad(row.receivers, pad), shifts=shifts
        )
    data = Structures(*map(np.stack, zip(*rows, strict=True)))
    counts = (data.species[..., None] == range(len(LATTICE))).sum(1)
    single, *_ = np.linalg.lstsq(counts, data.energy)
    return data._replace(energy=data.energy - counts @ single)


def batches_of(epoch, size):
    """The order of the structures in an epoch, the same in PyTorch and in JAX."""
    order = np.random.default_rng(epoch).permutation(size)
    return order[: size // BATCH * BATCH].reshape(-1, BATCH)
