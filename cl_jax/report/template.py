"""The fixed parts of the HTML page: its style, its script and its explanations."""

from collections.abc import Sequence

from cl_jax.report import diagnostic_words, text_words
from cl_jax.report.kinds import BITS
from cl_jax.report.measure import Measure

STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --card: #f7f8fa; --ink: #1b1f24; --soft: #5b6470;
  --rule: #dfe3e8; --link: #1f6fc4; --warn: #a0480a; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --card: #1b1f25; --ink: #e6e9ee; --soft: #a0a9b5;
  --rule: #333a43; --link: #6cb0f5; --warn: #f0a45c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 23px; margin: 56px 0 4px; padding-top: 20px; border-top: 2px solid var(--rule);
  overflow-wrap: anywhere; }
h3 { font-size: 18px; margin: 40px 0 4px; }
h4 { font-size: 14px; margin: 0 0 2px; overflow-wrap: anywhere; }
p, dl, ul { margin: 6px 0 12px; max-width: 92ch; }
a { color: var(--link); }
.soft, figcaption, .caption { color: var(--soft); font-size: 14px; }
.scroll { overflow-x: auto; margin: 12px 0; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; min-width: 100%; }
th { text-align: right; font-weight: 600; vertical-align: bottom; border-bottom: 1.5px solid var(--ink); }
td { text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th, td { padding: 6px 8px; }
th:first-child, td:first-child { padding-left: 0; }
th.words, td.words { text-align: left; }
td.words { white-space: normal; overflow-wrap: anywhere; min-width: 15ch; }
td .method { display: flex; gap: 8px; } td .method .swatch { flex: none; margin-top: 5px; }
td [title] { cursor: help; }
.short { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 14px 22px 8px;
  margin: 22px 0; }
.short h2 { border: 0; margin: 0; padding: 0; font-size: 18px; } .short h3 { margin: 12px 0 0; font-size: 16px; }
.short ul { padding-left: 20px; max-width: 92ch; } .short li { margin: 3px 0; }
.flag { color: var(--warn); }
ul.notes { font-size: 14px; color: var(--soft); padding-left: 20px; max-width: none; }
.swatch { display: inline-block; width: 11px; height: 11px; border-radius: 3px; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 18px; font-size: 13px; color: var(--soft); margin: 8px 0 12px; }
.legend span { display: inline-flex; align-items: center; gap: 7px; }
.legend i { display: inline-block; width: 22px; border-top: 3px solid var(--colour); }
.legend i.dash { border-top-style: dashed; } .legend i.dot { border-top-style: dotted; }
.legend i.bar { border: 0; width: 9px; height: 16px; background: var(--colour); }
.legend i.cross { border: 0; width: auto; font-style: normal; font-weight: 700; color: #d1495b; }
.legend i.cross::before { content: "\\2715"; }
.legend i.viridis { border: 0; width: 140px; height: 11px; border-radius: 2px;
  background: linear-gradient(90deg, #440154, #3b528b, #21918c, #5ec962, #fde725); }
.panels { display: grid; gap: 18px 14px; align-items: end;
  grid-template-columns: repeat(auto-fill, minmax(
    min(100%, max(215px, (100% - (var(--columns) - 1) * 14px) / var(--columns))), 1fr)); }
.panels.wide { grid-template-columns: minmax(0, 1fr); }
.panel { min-width: 0; }
details { margin: 16px 0; } summary { cursor: pointer; color: var(--link); }
dt { font-weight: 600; } dd { margin: 0 0 8px; }
dl.facts { display: grid; grid-template-columns: minmax(120px, max-content) minmax(0, 1fr); gap: 3px 20px;
  font-size: 14px; max-width: none; }
dl.facts dt { font-weight: 400; color: var(--soft); overflow-wrap: anywhere; }
dl.facts dd { margin: 0; font-family: ui-monospace, "Liberation Mono", monospace; font-size: 13px;
  overflow-wrap: anywhere; white-space: pre-wrap; }
footer { margin-top: 64px; padding-top: 20px; border-top: 2px solid var(--rule); }
@media (max-width: 600px) { main { padding: 24px 14px 40px; } h1 { font-size: 24px; }
  dl.facts { grid-template-columns: minmax(0, 1fr); } dl.facts dd { margin-bottom: 6px; } }
"""

# Runs before everything else, so that an error anywhere is counted where a test, or a reader, can see it.
ERROR_COUNTER = """
document.documentElement.dataset.scriptErrors = 0;
for (const kind of ["error", "unhandledrejection", "securitypolicyviolation"]) {
  window.addEventListener(kind, (event) => {
    const data = document.documentElement.dataset;
    data.scriptErrors = Number(data.scriptErrors) + 1;
    data.lastScriptError = `${kind}: ${event.message || event.reason || event.blockedURI || ""}`.slice(0, 300);
  }, true);
}
"""

SCRIPT = """
const charts = JSON.parse(document.getElementById("charts").textContent);
const buttons = [["toImage", "zoom2d", "pan2d", "resetScale2d"]];

function theme() {
  const style = getComputedStyle(document.documentElement);
  const names = ["--ink", "--soft", "--rule", "--card"];
  const [ink, soft, rule, card] = names.map((name) => style.getPropertyValue(name).trim());
  const axis = { gridcolor: rule, linecolor: rule, zerolinecolor: rule, automargin: true };
  const font = { color: ink, size: 12, family: getComputedStyle(document.body).fontFamily };
  return { layout: { font, xaxis: axis, yaxis: axis, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    modebar: { bgcolor: "rgba(0,0,0,0)", color: soft, activecolor: ink },
    hoverlabel: { align: "left", bgcolor: card, bordercolor: soft, font: { color: ink } } } };
}

async function draw() {
  const template = theme();
  for (const [index, div] of [...document.querySelectorAll(".chart")].entries()) {
    const { data, layout } = charts[index];
    const bar = layout.showlegend ? { modeBarButtons: buttons } : { displayModeBar: false };
    await Plotly.react(div, data, { ...layout, template }, { responsive: true, displaylogo: false, ...bar });
    await new Promise((resolve) => setTimeout(resolve)); // the page stays usable while many charts are drawn
  }
  document.documentElement.dataset.chartsDrawn = charts.length;
}

let drawing = draw();
const redraw = () => { drawing = drawing.then(draw); };
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
"""

EDGE_HINT = "the smallest or largest value tried: a better one may lie beyond it"

CAPTIONS = {
    "average-accuracy": (
        "Accuracy on the tasks seen so far",
        "Each line is a method: after each task, the mean accuracy over all tasks trained so far. A line that falls "
        "is a method that forgets. Shaded, for up to six methods: ± 1 standard deviation over seeds. Hover for mean ± "
        "standard error; click a name to hide it.",
    ),
    "plane": (
        "Learning against forgetting",
        "Every point is one configuration. Right: it learned each new task better. Up: it forgot less. The best corner "
        "is the top right. A large point is the one chosen for the table, with bars of ± 1 standard deviation over "
        "seeds; thin lines join each method's best trade-offs, the broad grey line is the Pareto front: the "
        "configurations (joint apart) that no other beats in both. A hollow point has a seed that diverged.",
    ),
    "strength": (
        "What each hyper-parameter does",
        "Metrics against every value tried. Protecting old tasks harder lowers forgetting and, past some point, "
        "learning too; the best average accuracy lies between. The grey bar is the value chosen on the validation "
        "split; if it is at the end of the axis, the best one may lie outside. Where several hyper-parameters were "
        "swept, each value is shown with the best of the others by validation accuracy. Shaded: ± 1 standard "
        "deviation over seeds. What was stopped early has no point.",
    ),
    "accuracy-matrix": (
        "Accuracy matrix",
        "Row: after training on this task. Column: accuracy on that task. Read a column downwards: bright at the "
        "diagonal, where the task was learned; darker further down is forgetting. Right of the diagonal are tasks "
        "not trained yet, empty where they cannot be measured. Mean over seeds of the chosen configuration, percent.",
    ),
    "accuracy-over-training": (
        "Each task over training",
        "One panel a method, one line a task. A task's line is solid from when it was trained, dotted before; what "
        "it loses afterwards is forgetting. 0 tasks trained: the initial weights. Shaded, for up to six tasks: ± 1 "
        "standard deviation over seeds.",
    ),
    "selection": (
        "What the choice of selection protocol changes",
        "The same runs under the field's protocols, which differ in the validation data that they look at and in the "
        "seeds and tasks that they measure, so that two columns compare only where they measure the same. Each cell: "
        "test accuracy at the end and, below it, what was chosen, orange where it is not what the first column has. "
        "The last column cheats: it chooses on the test split. The last row says how far a protocol's numbers lie "
        "below such a choice on the same seeds and tasks, the price of leaving the test split alone.",
    ),
}

GLOSSARY = (
    (
        "Accuracy matrix R",
        "R[i, j] is the test accuracy on task j after training on task i. Everything below follows from it.",
    ),
    ("Average accuracy", "Mean of the last row of R: accuracy over all tasks at the end. Higher is better."),
    (
        "AIA, average incremental accuracy",
        "Accuracy over the tasks seen so far, after each task, averaged over training: the mean of the first figure's "
        "line.",
    ),
    (
        "Forgetting",
        "Mean over the tasks but the last of: the best accuracy before the last task, minus the accuracy at the end. "
        "0 is none; lower is better.",
    ),
    (
        "Learning accuracy",
        "Mean of the diagonal of R: accuracy on each task just after it was trained (plasticity). A method that "
        "forgets nothing because it learns nothing shows here.",
    ),
    (
        "BWT, backward transfer",
        "Mean over the tasks but the last of: accuracy at the end minus accuracy just after training. Below 0 is loss.",
    ),
    (
        "FWT, forward transfer",
        "Mean over the tasks but the first of: accuracy just before training minus accuracy of the initial weights. "
        "Undefined where later classes have no outputs yet (class-incremental).",
    ),
    (
        "± and [95 %]",
        "± is the standard error of the mean over seeds. The difference to finetune is paired by seed, its interval a "
        "percentile bootstrap over seeds; an interval that excludes 0 is a difference that the seeds agree on. With "
        "fewer than about ten seeds it is too narrow.",
    ),
    (
        "finetune, joint",
        "finetune trains on one task after another and protects nothing: the lower bound. joint trains on all tasks "
        "together: the upper bound.",
    ),
    (
        "Chosen, and the star *",
        "Each method was trained with every value of its grid; the table shows the one with the best accuracy on the "
        "validation split, by the protocol named below the table. A star marks the edge of the grid: the smallest or "
        "largest value tried was best, the true optimum may lie beyond, so widen the grid before comparing.",
    ),
)


def captions(measure: Measure) -> dict[str, tuple[str, str]]:
    """Of every figure and table by its kind: a title and an explanation."""
    return {**CAPTIONS, **diagnostic_words.CAPTIONS, **(text_words.CAPTIONS if measure is BITS else {})}


def glossary(measures: Sequence[Measure]) -> list[tuple[str, str]]:
    """What each number means in streams of these measures."""
    words = [*GLOSSARY] * any(each is not BITS for each in measures)
    return words + [*text_words.GLOSSARY] * any(each is BITS for each in measures)
