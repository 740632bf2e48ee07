"""A truth audit: random and degenerate problems, each answer judged in float64 by numpy.

A false CONVERGED is a status that the answer itself contradicts. What is judged is what is
returned: the residual of the value, the marginals of the potentials, the distance to a root, the
rows of a trajectory, each against the tolerance that the status claims, with room for the
rounding of the user's own map and for nothing else. Each `audit_*` draws problems, solves them in
one compiled program, and returns a `Verdict`; `all_cases()` is the whole table.
"""

from jaxiter.testing.audit.accuracy import audit_accuracy
from jaxiter.testing.audit.bilevel import audit_hypergradient, audit_inner, audit_unrolled
from jaxiter.testing.audit.cases import all_cases
from jaxiter.testing.audit.fits import audit_fit
from jaxiter.testing.audit.games import audit_game
from jaxiter.testing.audit.gradients import audit_near_singular, audit_rows, audit_sixteen
from jaxiter.testing.audit.inclusions import audit_inclusion
from jaxiter.testing.audit.kinds import audit_process, audit_splitting, audit_stages
from jaxiter.testing.audit.maps import audit_fixed_point
from jaxiter.testing.audit.piecewise import audit_logits, audit_piecewise
from jaxiter.testing.audit.programs import audit_program
from jaxiter.testing.audit.resumed import audit_resume
from jaxiter.testing.audit.roots import audit_root
from jaxiter.testing.audit.sequences import audit_recurrence, audit_sample
from jaxiter.testing.audit.systems import audit_linear
from jaxiter.testing.audit.transport import (
    audit_batched,
    audit_clouds,
    audit_grids,
    audit_sinkhorn,
    audit_unbalanced,
)
from jaxiter.testing.audit.verdict import SPECIAL, Verdict

__all__ = [
    "SPECIAL", "Verdict", "all_cases", "audit_accuracy", "audit_batched", "audit_clouds",
    "audit_fit", "audit_fixed_point", "audit_game", "audit_grids", "audit_hypergradient",
    "audit_inclusion", "audit_inner", "audit_linear", "audit_logits", "audit_near_singular",
    "audit_piecewise", "audit_process", "audit_program", "audit_recurrence", "audit_resume",
    "audit_root", "audit_rows", "audit_sample", "audit_sinkhorn", "audit_sixteen",
    "audit_splitting", "audit_stages", "audit_unbalanced", "audit_unrolled",
]
