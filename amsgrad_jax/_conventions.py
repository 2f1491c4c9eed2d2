"""The four published conventions of AMSGrad, as data.

Every convention averages the gradient and its square in the same way. They
differ in three choices, and a `Convention` records exactly those three. The
rule (`_rule.py`) turns them into scalar factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from amsgrad_jax import _checks

NuCorrection = Literal["never", "before_max", "after_max"]
EpsPlace = Literal["corrected_root", "raw_root"]
ConventionName: TypeAlias = Literal["paper", "pytorch", "keras", "optax"]


@dataclass(frozen=True)
class Convention:
    r"""Where bias corrections are applied and where ``eps`` is added.

    With :math:`m_t, v_t` the uncorrected averages, :math:`c_1 = 1 - \beta_1^t` and
    :math:`c_2 = 1 - \beta_2^t`, the update direction is

    .. math::

        x_t = \max(x_{t-1},\ v_t / k), \qquad
        u_t = \frac{m_t / a}{\sqrt{x_t + \epsilon_\text{root}} \,/\, s + \epsilon}

    where :math:`a` is :math:`c_1` or 1, :math:`k` is :math:`c_2` or 1, and :math:`s` is
    :math:`\sqrt{c_2}` or 1, depending on the fields; with ``eps_on="raw_root"``,
    :math:`\epsilon` is divided by :math:`s`, too. Four constants are the published
    combinations: :data:`PAPER`, :data:`PYTORCH`, :data:`KERAS` and :data:`OPTAX`.

    Args:
      correct_mu: Whether the first moment is divided by :math:`1 - \beta_1^t`. Without this
        correction the first updates are smaller.
      correct_nu: Where the second moment is divided by :math:`1 - \beta_2^t`. ``"never"``
        (paper): nowhere. ``"before_max"`` (Optax): the maximum is taken over corrected moments,
        so a large first gradient keeps the steps small for the rest of the run.
        ``"after_max"`` (PyTorch, Keras): the maximum is taken over uncorrected moments.
      eps_on: What ``eps`` is added to if the correction is applied after the maximum:
        ``"corrected_root"`` (:math:`\sqrt{x_t}/\sqrt{c_2} + \epsilon`, PyTorch) or
        ``"raw_root"`` (:math:`(\sqrt{x_t} + \epsilon)/\sqrt{c_2}`, Keras). Without a
        correction after the maximum the two are the same.

    Raises:
      TypeError: If ``correct_mu`` is not a bool, or ``correct_nu`` or ``eps_on`` not a string.
      ValueError: If ``correct_nu`` or ``eps_on`` is none of the values above.

    Examples:
      PyTorch's rule, but with an uncorrected first moment:

      >>> import amsgrad_jax
      >>> mine = amsgrad_jax.Convention(correct_mu=False, correct_nu="after_max")
      >>> optimizer = amsgrad_jax.amsgrad(1e-3, convention=mine)

    References:
      Reddi, Kale and Kumar, `On the Convergence of Adam and Beyond
      <https://arxiv.org/abs/1904.09237>`_, ICLR 2018, Algorithm 2.
    """

    correct_mu: bool
    correct_nu: NuCorrection
    eps_on: EpsPlace = "corrected_root"

    def __post_init__(self) -> None:
        _checks.flag("correct_mu", self.correct_mu)
        for name, known in (("correct_nu", NuCorrection), ("eps_on", EpsPlace)):
            _checks.literal(name, getattr(self, name), get_args(known))


PAPER: Final = Convention(correct_mu=False, correct_nu="never")
"""Algorithm 2 of the paper: no bias correction. The paper has no ``eps``; that is ``eps=0.0``."""

PYTORCH: Final = Convention(correct_mu=True, correct_nu="after_max")
"""``torch.optim.Adam(amsgrad=True)`` and ``AdamW(amsgrad=True)``; the default here."""

KERAS: Final = Convention(correct_mu=True, correct_nu="after_max", eps_on="raw_root")
"""``keras.optimizers.Adam(amsgrad=True)``, also TensorFlow's; its ``eps`` is 1e-7 by default."""

OPTAX: Final = Convention(correct_mu=True, correct_nu="before_max")
"""``optax.amsgrad`` with its defaults."""

_NAMED: Final = {"paper": PAPER, "pytorch": PYTORCH, "keras": KERAS, "optax": OPTAX}


def resolve(convention: str | Convention) -> Convention:
    """Returns the convention of that name, or the given :class:`Convention`."""
    if isinstance(convention, Convention):
        return convention
    known = get_args(ConventionName)
    return _NAMED[_checks.literal("convention", convention, known, "an amsgrad_jax.Convention")]
