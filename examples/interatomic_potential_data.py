"""What both halves of `interatomic_potential.py` have in common: settings and structures."""

from typing import Any, NamedTuple

import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.neighborlist import neighbor_list

LATTICE = {"Cu": 3.61, "Ni": 3.52, "Al": 4.05, "Pd": 3.89}  # constants in Å
ATOMS, NEIGHBOURS, CUTOFF, CHANNELS, RADIAL = 8, 32, 4.2, 16, 8
BATCH, VALIDATION = 8, 48
# Of Huber losses: in eV and eV/Å. With 0.01, the size of the errors, the gradients of the last
# epochs are little more than signs, and a difference in the last digit grows tenfold an epoch.
DELTA = 0.1
LEARNING_RATE, DECAY, CLIP, EMA = 0.005, 1e-6, 10.0, 0.99
FACTOR, PATIENCE, THRESHOLD = 0.5, 1, 0.2  # of ReduceLROnPlateau


class Structures(NamedTuple):
    positions: Any  # (atoms, 3)
    species: Any  # (atoms,)
    neighbours: Any  # (atoms, NEIGHBOURS), atoms within the cutoff, in periodic images, too
    shifts: Any  # (atoms, NEIGHBOURS, 3), from the neighbour in the cell to its image
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
        species = np.array([[*LATTICE].index(element) for element in elements])
        # Places that are left over: the atom itself, beyond the cutoff, where nothing is seen.
        neighbours = np.tile(np.arange(ATOMS)[:, None], NEIGHBOURS)
        shifts = np.full((ATOMS, NEIGHBOURS, 3), 2 * CUTOFF)
        centres, others, images = neighbor_list("ijS", atoms, CUTOFF)  # sorted by the centres
        place = np.arange(len(centres)) - np.searchsorted(centres, centres)
        neighbours[centres, place] = others
        shifts[centres, place] = images @ atoms.cell.array
        labels = atoms.get_potential_energy(), atoms.get_forces()
        rows.append(Structures(atoms.positions, species, neighbours, shifts, *labels))
    data = Structures(*map(np.stack, zip(*rows, strict=True)))
    counts = (data.species[..., None] == range(len(LATTICE))).sum(1)
    single, *_ = np.linalg.lstsq(counts, data.energy)
    return data._replace(energy=data.energy - counts @ single)


def batches_of(epoch, size):
    """The order of the structures in an epoch, the same in PyTorch and in JAX."""
    order = np.random.default_rng(epoch).permutation(size)
    return order[: size // BATCH * BATCH].reshape(-1, BATCH)
