"""Where and why it forgets: what a run may be asked to measure at every task boundary, by name.

`Run(diagnostics=("fisher_overlap", "plasticity"))`. Each looks at a few examples of every task, is computed on the
device beside the evaluation, and writes to diagnostics.parquet.
"""

from cl_jax.diagnostics import (
    base_kl,
    cost,
    fisher_overlap,
    forward_kl,
    gradient_interference,
    loss_path,
    parameter_drift,
    plasticity,
    representation_drift,
    shared_weights,
    stability_gap,
    transitions,
)
from cl_jax.diagnostics.diagnostic import Diagnostic

DIAGNOSTICS = {
    "base_kl": Diagnostic(base_kl.measure, keeps_weights=True),
    "cost": Diagnostic(cost.measure),
    "fisher_overlap": Diagnostic(fisher_overlap.measure),
    "forward_kl": Diagnostic(forward_kl.measure, keeps_weights=True),
    "gradient_interference": Diagnostic(gradient_interference.measure),
    "loss_path": Diagnostic(loss_path.measure, keeps_weights=True),
    "parameter_drift": Diagnostic(parameter_drift.measure, keeps_weights=True),
    "plasticity": Diagnostic(plasticity.measure),
    "representation_drift": Diagnostic(representation_drift.measure, keeps_weights=True, needs_features=True),
    "shared_weights": Diagnostic(shared_weights.measure),
    "stability_gap": Diagnostic(stability_gap.measure),
    "transitions": Diagnostic(transitions.measure, keeps_weights=True),
}
