"""Which configuration of a grid a method is reported by, and on which seeds and tasks: the field's protocols as values.

Hyper-parameters are chosen on validation data; which of it may be looked at differs from paper to paper, and so do the
numbers. All are read off the same grid, whose runs keep their strengths from the first task to the last.

V[c, s, t, j] is the validation accuracy on task j after t tasks (j from 1, t from 0) of configuration c with seed s;
of text minus the bits per byte, so that more is better here too. There are C configurations, S seeds and T tasks. Ties
go to the first configuration.

Under every protocol a configuration that was stopped at a boundary is never chosen, one without a finished run is
passed over for one with, one with a diverged run for one without, one with an unfinished run for one without, in this
order, before scores are compared. A flag of divergence carries no date, so it counts from the start.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from cl_jax.errors import UserError, unknown
from cl_jax.wording import TASKS, Wording

FORMS = ("all", "first:K", "seed:S", "per-task")


class Candidates(NamedTuple):
    """The configurations of one method, as a protocol may see them."""

    validation: np.ndarray  # float64 [C, S, T + 1, T], V; NaN where nothing was measured
    seeds: np.ndarray  # int [S], ascending, those of every method of the run
    present: np.ndarray  # bool [C, S], the configuration has a run with that seed
    complete: np.ndarray  # bool [C, S], it has finished
    diverged: np.ndarray  # bool [C, S]
    stopped: np.ndarray  # bool [C], ended at a boundary on purpose


class Choice(NamedTuple):
    """What is reported of one method."""

    configuration: np.ndarray  # int [S, T], where row t of a seed's accuracy matrix is taken from; -1: nowhere
    seeds: np.ndarray  # bool [S], those that the reported numbers are means over
    first_task: int  # the reported numbers are of the tasks from this one (from 1) to T, after each of them
    order: np.ndarray  # int [C], configurations from best to worst
    score: np.ndarray  # float64 [C], the mean of V they are ordered by; -inf: none


class Protocol(NamedTuple):
    """A way of choosing. Two with the same name are the same."""

    name: str  # as the command line has it: "first:3"
    chosen_by: str  # in words
    reported_on: str  # in words, if not on everything, else ""
    caution: str  # how the numbers differ from those of the source, a sentence or ""
    source: str
    choose: Callable[[Candidates], Choice]
    reworded: Callable[[Wording], "Protocol"] | None = None  # the same in the words of another stream

    def said(self, wording: Wording) -> "Protocol":
        """The same in the words of a stream."""
        return self if self.reworded is None else self.reworded(wording)

    @property
    def words(self) -> str:
        """Both in words."""
        return self.chosen_by + f"; numbers are of {self.reported_on}" * bool(self.reported_on)


def all_tasks(wording: Wording = TASKS) -> Protocol:
    """argmax_c mean_s mean_j V[c, s, T, j], reported on every task and seed.

    The usual grid search: it sees the whole stream before it chooses, which no learner of that stream could.

    Source: the comparison of protocols in Chaudhry et al. 2019, arXiv 1812.00420, section 2, which argues against it.
    """

    def choose(candidates: Candidates) -> Choice:
        everyone = np.ones(len(candidates.seeds), bool)
        return _constant(candidates, _score(candidates, everyone, _num_tasks(candidates)), everyone, everyone)

    words = f"validation {wording.score}, all {wording.tasks}, all seeds"
    return Protocol("all", words, "", "", "common practice", choose, all_tasks)


def first_tasks(count: int, wording: Wording = TASKS) -> Protocol:
    """argmax_c mean_s mean_{j <= k} V[c, s, k, j], reported on the tasks k + 1 to T alone.

    The reported matrix is R[t, j] for t, j > k, [T - k, T - k]: the rows after task k + 1 and later, the columns of
    those tasks; every metric is that of this matrix, as if the stream began there. Accuracy before training, for
    forward transfer, stays that of the initial weights.

    In the paper (k = 3 of T = 20) the reported learner starts anew at task k + 1 and never trains on the first k. One
    run of the whole stream has trained on them: that may help (transfer) and may cost (capacity), and what it forgets
    of them is in no number. A penalty does nothing before its first boundary, so that with k = 1 its strengths tie.

    Args:
        count: k.
        wording: of the stream that it is told of; the same in the others.

    Raises:
        UserError: by `choose`, unless 1 <= k < T.

    Source: Chaudhry et al. 2019 (A-GEM), arXiv 1812.00420, algorithm 1.
    """
    name = f"first:{count}"

    def choose(candidates: Candidates) -> Choice:
        num_tasks, everyone = _num_tasks(candidates), np.ones(len(candidates.seeds), bool)
        if not 1 <= count < num_tasks:
            allowed = f"K may be 1 to {num_tasks - 1}" if num_tasks > 1 else "one task cannot be parted"
            raise UserError(f"--select {name}: tasks must be left to report, and there are {num_tasks}; {allowed}")
        score = _score(candidates, everyone, count)
        return _constant(candidates, score, everyone, everyone, first_task=count + 1)

    def reworded(wording: Wording) -> Protocol:
        # Of a stream that has fewer tasks, `choose` says so.
        return first_tasks(count, wording if count <= len(wording.names) else wording._replace(names=()))

    which, end = wording.span(1, count), wording.one(count)
    words = f"validation {wording.score} on {which} after {end}, all seeds"
    source = "Chaudhry et al. 2019 (A-GEM), arXiv 1812.00420"
    caution = f"Unlike in the paper, the runs have trained on {which} too"
    return Protocol(name, words, f"the {wording.tasks} after {end} alone", caution, source, choose, reworded)


def one_seed(seed: int, wording: Wording = TASKS) -> Protocol:
    """argmax_c mean_j V[c, s, T, j] for one seed s, reported on the other seeds, all tasks.

    Nothing of the other seeds is looked at, whether they diverged neither.

    Args:
        seed: s.
        wording: as `first_tasks` takes it.

    Raises:
        UserError: by `choose`, where no run has that seed or no other.

    Source: van de Ven, Tuytelaars and Tolias 2022, Nature Machine Intelligence 4, 1185-1197: chosen on one seed,
        reported on 20 others.
    """
    name = f"seed:{seed}"

    def choose(candidates: Candidates) -> Choice:
        chooses = candidates.seeds == seed
        if not chooses.any():
            known = ", ".join(map(str, candidates.seeds.tolist()))
            raise UserError(f"--select {name}: no run has seed {seed}; S may be one of {known}")
        if chooses.all():
            raise UserError(f"--select {name}: no other seed is left to report; run the experiment with more seeds")
        score = _score(candidates, chooses, _num_tasks(candidates))
        return _constant(candidates, score, chooses, ~chooses)

    words = f"validation {wording.score}, all {wording.tasks}, seed {seed} alone"
    source = "van de Ven, Tuytelaars and Tolias 2022, Nature Machine Intelligence 4, 1185-1197"
    return Protocol(name, words, "the other seeds", "", source, choose, partial(one_seed, seed))


def per_task(wording: Wording = TASKS) -> Protocol:
    """Row t of seed s is that of argmax_c mean_{j <= t} V[c, s, t, j]: no task after t and no other seed is looked at.

    Every number is that of the matrix put together from these rows; all seeds and tasks are reported.

    This is what a grid can say; it is not a run of the published protocols. There the learner that was chosen after
    task t goes on to task t + 1 and the others are dropped; here row t + 1 may come from a run with another strength
    from its first task on, so that a fall between two rows need not be forgetting: read accuracy, and forgetting with
    care. There the strongest protection is taken whose accuracy on the new task alone stays near that of fine-tuning
    (by a threshold); here the highest mean over the tasks so far, which needs their validation data to be kept.

    Source: Masana et al. 2020 (FACIL), arXiv 2010.15277; De Lange et al. 2019, arXiv 1909.08383.
    """

    def choose(candidates: Candidates) -> Choice:
        num_seeds, num_tasks = len(candidates.seeds), _num_tasks(candidates)
        configuration = np.full((num_seeds, num_tasks), -1)
        for s, t in np.ndindex(num_seeds, num_tasks):
            row = candidates.validation[:, s, t + 1, : t + 1].mean(axis=-1)
            alone = np.arange(num_seeds) == s
            best = _order(candidates, np.where(np.isnan(row), -np.inf, row), alone)[0]
            if candidates.present[best, s] and not candidates.stopped[best]:
                configuration[s, t] = best
        return all_tasks().choose(candidates)._replace(configuration=configuration)

    task = wording.task
    words = f"validation {wording.score} on the {task}s so far, after each {task} anew, each seed by itself"
    source = "Masana et al. 2020 (FACIL), arXiv 2010.15277; De Lange et al. 2019, arXiv 1909.08383"
    caution = f"A {wording.fall} from {task} to {task} may be a change of configuration, not forgetting"
    return Protocol("per-task", words, "", caution, source, choose, per_task)


def oracle(test: Candidates, choice: Choice) -> Choice:
    """argmax_c of the mean test accuracy after the last task over the seeds and tasks that `choice` reports.

    What nobody may do; how far it lies above a protocol's number is what choosing on test would have overstated.

    Args:
        test: the method's candidates with test accuracy in the place of V.
        choice: of a protocol; its seeds and tasks are looked at.
    """
    first, kept = choice.first_task - 1, choice.seeds
    seen = Candidates(
        test.validation[:, kept, first:, first:], test.seeds[kept], test.present[:, kept], test.complete[:, kept],
        test.diverged[:, kept], test.stopped,
    )  # fmt: skip
    return all_tasks().choose(seen)


def parse(text: str) -> Protocol:
    """The protocol of a name such as "all", "first:3", "seed:0" or "per-task".

    Raises:
        UserError: an unknown name, or a number that is missing or too many.
    """
    kind, colon, number = text.partition(":")
    plain = {"all": all_tasks, "per-task": per_task}
    numbered = {"first": (first_tasks, "the number of tasks to choose on, as first:3"), "seed": (one_seed, "as seed:0")}
    if kind not in plain and kind not in numbered:
        raise unknown("--select", text, FORMS)
    if kind in plain:
        if colon:
            raise UserError(f"--select {text}: {kind!r} takes no number; give {kind}")
        return plain[kind]()
    make, example = numbered[kind]
    if not re.fullmatch(r"[0-9]{1,9}", number):
        raise UserError(f"--select {text}: {kind!r} needs a whole number, {example}")
    return make(int(number))


ALL = all_tasks()


def suggested(num_tasks: int, seeds: np.ndarray, selected: Protocol = ALL) -> list[Protocol]:
    """One protocol of each kind that a run of so many tasks and these seeds allows, `selected` for its own kind.

    k is 3 as in the paper, or half of a shorter stream; the seed is the first.
    """
    known = [ALL]
    known += [first_tasks(min(3, num_tasks // 2))] * (num_tasks > 1)
    known += [one_seed(int(seeds[0]))] * (len(seeds) > 1)
    known += [per_task()] * (num_tasks > 1)
    kind = selected.name.partition(":")[0]
    return [selected if each.name.partition(":")[0] == kind else each for each in known]


def _num_tasks(candidates: Candidates) -> int:
    return candidates.validation.shape[-1]


def _score(candidates: Candidates, seeds: np.ndarray, after: int) -> np.ndarray:
    """mean_s mean_{j <= after} V[c, s, after, j] over the finished runs of these seeds [C]; -inf where not measured."""
    accuracy = candidates.validation[:, :, after, :after].mean(axis=-1)
    finished = candidates.complete & seeds
    means = [row[kept].mean() if kept.any() else np.nan for row, kept in zip(accuracy, finished, strict=True)]
    return np.where(np.isnan(means), -np.inf, means)


def _order(candidates: Candidates, score: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Configurations from best to worst [C], judged by these seeds as the head of this file says."""
    complete, present = candidates.complete[:, seeds], candidates.present[:, seeds]
    worse = (
        candidates.stopped, ~present.any(axis=1), ~complete.any(axis=1), candidates.diverged[:, seeds].any(axis=1),
        (present & ~complete).any(axis=1), -score,
    )  # fmt: skip
    return np.lexsort(worse[::-1])  # by the last key first


def _constant(
    candidates: Candidates, score: np.ndarray, judges: np.ndarray, reported: np.ndarray, first_task: int = 1
) -> Choice:
    """The best one for every seed and task."""
    order = _order(candidates, score, judges)
    best = -1 if candidates.stopped[order[0]] else order[0]
    configuration = np.full((len(candidates.seeds), _num_tasks(candidates)), best)
    return Choice(configuration, reported, first_task, order, score)
