"""What the page says of runs on text where it says other things than of images."""

CAPTIONS = {
    "average-bits": (
        "Bits per byte on the domains seen so far",
        "Each line is a method: after each domain, the mean over all domains trained so far of the bits that the model "
        "needs for a byte of held-out text. Less is better. Domains differ in how hard they are, so that a new one may "
        "lift or lower the whole line: compare methods at the same place. Shaded, for up to six methods: ± 1 standard "
        "deviation over seeds. Hover for mean ± standard error; click a name to hide it.",
    ),
    "fronts": (
        "Learning against forgetting",
        "Every point is one configuration. Right: it gained more bits per byte on each new domain, from just before "
        "training on it to just after. Up: it lost fewer bits per byte on the domains before. The best corner is the "
        "top right. A line is a method through those of its configurations that no other one of it beats in both. "
        "Compare lines at the same learning, not points: a smaller learning rate forgets less of itself. Bars: ± 1 "
        "standard deviation over seeds. Grey band: the forgetting that seeds alone can make or hide, ± the standard "
        "deviation of runs of one configuration. Configurations with a diverged seed are left out. A large point is "
        "the one chosen for the table.",
    ),
    "strength": (
        "What each hyper-parameter does",
        "Metrics against every value tried. Protecting old domains harder lowers forgetting and, past some point, "
        "learning too; the least bits per byte at the end lie between. The grey bar is the value chosen on the "
        "validation split; if it is at the end of the axis, the best one may lie outside. Where several "
        "hyper-parameters were swept, each value is shown with the best of the others by validation bits per byte. "
        "Shaded: ± 1 standard deviation over seeds. What was stopped early has no point.",
    ),
    "bits-matrix": (
        "Bits per byte on every domain after every stage",
        "Row: after training on this domain. Column: bits per byte on that domain. Bright is few bits, the domain is "
        "known well; read a column downwards: bright at the diagonal, where the domain was learned, darker further "
        "down is forgetting. Right of the diagonal are domains not trained yet. The first row is the base. Mean over "
        "seeds of the chosen configuration.",
    ),
    "bits-over-training": (
        "Each domain over training",
        "One panel a method, one line a domain; down is better. A domain's line is solid from when it was trained, "
        "dotted before; what it rises afterwards is forgetting. The random weights before the base, which lie far "
        "above, are not shown. Shaded, for up to six domains: ± 1 standard deviation over seeds.",
    ),
    "selection": (
        "What the choice of selection protocol changes",
        "The same runs under the field's protocols, which differ in the validation data that they look at and in the "
        "seeds and domains that they measure, so that two columns compare only where they measure the same. Each cell: "
        "test bits per byte at the end and, below it, what was chosen, orange where it is not what the first column "
        "has. The last column cheats: it chooses on the test split. The last row says how far a protocol's numbers lie "
        "above such a choice on the same seeds and domains, the price of leaving the test split alone.",
    ),
    "diagnostic-forward_kl": (
        "Does the shift of the answers predict forgetting?",
        "Each point is one run, of any configuration. To the right: training on a domain changed more of what the "
        "model predicts, measured as the divergence KL(before || after) in nats a token. Up: the earlier domains lost "
        "more bits per byte by it. Both are means over the boundaries of the run. Left panel: on text of the new "
        "domain, which needs no old data; right panel: on text of the earlier domains. If forgetting follows from the "
        "shift, all methods lie on one curve (grey: the best parabola) and R² is near 1; a method above it forgets "
        "more than its shift explains.",
    ),
}

GLOSSARY = (
    (
        "Bits per byte",
        "What the model needs, on average, to write one UTF-8 byte of held-out text: the sum of -log2 p of every token "
        "that counts, divided by the bytes that these stand for, so that tokenizers compare. Lower is better; random "
        "weights over bytes need about 8. B[r, j] is that on domain j after r domains, r = 0 the random weights and "
        "r = 1 the base. Everything below follows from it.",
    ),
    ("Bits per byte at the end", "Mean of the last row of B: over all domains at the end. Lower is better."),
    (
        "Learning",
        "Mean over the domains after the base of: bits per byte just before training on the domain minus those just "
        "after. Higher is better. A method that forgets nothing because it learns nothing shows here.",
    ),
    (
        "Forgetting",
        "Mean over the domains but the last of: bits per byte at the end minus those just after training on the "
        "domain. 0 is none, below 0 is a gain; lower is better.",
    ),
    (
        "Retention",
        "Mean over the domains but the last of: the share that is left at the end of what the model had gained on the "
        "domain over random weights. 100 % is nothing forgotten, 0 % as if never trained.",
    ),
    (
        "Forgetting at equal learning",
        "Read off a method's line in the figure of learning against forgetting, between the points of its "
        "configurations, never beyond them: - where the method does not learn so much, or learns more at the least.",
    ),
    (
        "Hypervolume",
        "The area between a method's line and the worst corner of the figure (no learning, the most forgetting of any "
        "configuration), in squared bits per byte. Larger is better; it grows with the number of configurations tried.",
    ),
    (
        "± and [95 %]",
        "± is the standard error of the mean over seeds. The difference to finetune is paired by seed, its interval a "
        "percentile bootstrap over seeds; an interval that excludes 0 is a difference that the seeds agree on. With "
        "fewer than about ten seeds it is too narrow.",
    ),
    (
        "finetune, joint",
        "finetune trains on one domain after another and protects nothing. joint trains on the domains together, which "
        "is about the best to be had.",
    ),
    (
        "Chosen, and the star *",
        "Each method was trained with every value of its grid; the table shows the one with the fewest bits per byte "
        "on the validation split, by the protocol named below the table. A star marks the edge of the grid: the "
        "smallest or largest value tried was best, the true optimum may lie beyond, so widen the grid before "
        "comparing.",
    ),
)
