"""Where and why it forgets: what a run may be asked to measure at every task boundary, by name.

`Run(diagnostics=("fisher_overlap", "plasticity"))`. Each looks at a few examples of every task, is computed on the
device beside the evaluation, and writes to diagnostics.parquet.
"""

from cl_jax.diagnostics import (
    cost,
    fisher_overlap,
    plasticity,
)
from cl_jax.diagnostics.diagnostic import Diagnostic

DIAGNOSTICS = {
    "cost": Diagnostic(cost.measure),
    "fisher_overlap": Diagnostic(fisher_overlap.measure),
    "plasticity": Diagnostic(plasticity.measure),
}
