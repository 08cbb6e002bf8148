"""What each diagnostic's section says: a title, and how to read its figure without the paper."""

_SEEDS = "Lines: each method's chosen configuration, mean over seeds; shaded: ± 1 standard deviation."

CAPTIONS = {
    "diagnostic-forward_kl": (
        "Does the shift of the answers predict forgetting?",
        "Each point is one run, of any configuration. To the right: training on a task changed more of what the "
        "network answers, measured as the divergence KL(before || after) in nats. Up: the earlier tasks lost more "
        "accuracy by it. Both are means over the boundaries of the run. Left panel: answers to the new task's "
        "inputs, which need no old data; right panel: answers to the earlier tasks' inputs. If forgetting follows "
        "from the shift, all methods lie on one curve (grey: the best parabola) and R² is near 1; a method above it "
        "forgets more than its shift explains.",
    ),
    "diagnostic-base_kl": (
        "How far are the answers from the base's?",
        "The divergence KL(base || now) of what the model answers from what it answered after the first task (the "
        "base), on inputs of every task, in nats an answer (of text: a token). Left: at the end, on each task; a "
        "method that changes the answers to new inputs alone is high on these and near 0 on the base's own. Right: on "
        f"the base's own inputs, as further tasks are trained. {_SEEDS}",
    ),
    "diagnostic-transitions": (
        "Which answers were lost, which gained?",
        "Answer by answer (of text: token by token) against the base, the model after the first task: the share that "
        "was right then and is wrong now, and the share that was wrong and is right now. What guessing alone turns "
        "over is taken off, so that two equal models are at 0 or a little below. Accuracy shows only the difference "
        "of the two: where both are high, much was forgotten and as much learned. Left and middle: at the end, on "
        f"each task; right: lost on the base's own task, as further ones are trained. {_SEEDS}",
    ),
    "diagnostic-gradient_interference": (
        "Do tasks pull against each other?",
        "Just before a task is trained, the cosine between its gradient and that of each earlier task. Below 0, the "
        "first steps of the new task raise the earlier one's loss: they interfere. Above 0 they help it; at 0 they "
        f"use different directions. Left: by layer; right: over training. {_SEEDS}",
    ),
    "diagnostic-fisher_overlap": (
        "Do tasks use the same weights?",
        "The Fisher information says which weights a task's answers depend on. Overlap 1: two tasks depend on the "
        "same weights in the same proportions; 0: on different ones. Left: by layer from input to output, mean over "
        "pairs of tasks, each the last one trained and an earlier one; right: by how far the two lie apart. "
        f"Where overlap is high, one task cannot be trained without touching the other. {_SEEDS}",
    ),
    "diagnostic-shared_weights": (
        "How much is shared by how many tasks?",
        "Of the weights that are important to any task, the share that is so to two or more; among how many tasks "
        "the importance of a weight is spread (1: each weight belongs to one task); the same of features by their "
        "activation. The more tasks share a weight or a feature, the less it can change for one of them alone. "
        f"{_SEEDS}",
    ),
    "diagnostic-parameter_drift": (
        "How far did the weights move?",
        "Distance of the weights from where they were when a task had just been learned, against the number of tasks "
        "trained since. The plain distance counts every weight alike; the Fisher norm counts a weight by its "
        "importance to that task, so that half its square is the rise in loss (nats) that EWC expects. A method that "
        f"moves far but low in Fisher norm moves where it does not matter. {_SEEDS}",
    ),
    "diagnostic-representation_drift": (
        "Is a task still seen as it was when learned?",
        "Similarity (linear CKA) between a task's features just after it was learned and some tasks later, by layer. "
        "1: the same representation up to rotation and scale, so that later layers could still read it; lower: "
        "overwritten. Where early layers stay near 1 and late ones fall, the forgetting is in the late layers. "
        f"{_SEEDS}",
    ),
    "diagnostic-loss_path": (
        "Is the old solution still in the same valley?",
        "Loss on a task along the straight line from the weights that had just learned it (0) to later ones (1). "
        "Flat: the same valley, nothing forgotten. A steady rise: the weights have climbed its wall. A hump in the "
        f"middle that comes down again: another valley. {_SEEDS}",
    ),
    "diagnostic-stability_gap": (
        "What happens in the first steps of a new task?",
        "Accuracy on the earlier tasks, step by step after the next task begins, mean over tasks and boundaries. A "
        "dip that recovers is the stability gap: it is forgetting that accuracy at the end of tasks does not show. "
        f"Right: the lowest accuracy within these steps. {_SEEDS}",
    ),
    "diagnostic-plasticity": (
        "What is left to learn with?",
        "After every task, on its inputs: the norm of the weights; the share of dead units, which are 0 for every "
        "input and learn nothing; the effective rank, how many directions the features of a layer really use. Dead "
        "units that pile up, rank that falls and norms that grow are signs of a network that is losing its ability "
        f"to learn. {_SEEDS}",
    ),
    "diagnostic-cost": (
        "What does each method cost?",
        "Of one run of the chosen configuration: parameters that are computed with and that train, bytes of its "
        "training state and of the parts beside the weights (buffers of images hold references to the data set, "
        "which all runs share), floating-point operations of a training step relative to the cheapest method, and "
        "seconds a task, which depend on the machine and on what ran beside it.",
    ),
}
