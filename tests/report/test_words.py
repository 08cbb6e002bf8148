"""The result in sentences: right numbers, and no sentence that the data does not carry."""

import numpy as np
import pytest

from cl_jax.report import summary
from cl_jax.report.words import findings

# Accuracy on task j after i tasks: learned to the first number, down to the second at the end.
LEVELS = {"finetune": (0.9, 0.5), "keeper": (0.8, 0.7), "frozen": (0.4, 0.4), "joint": (0.9, 0.9)}


def leveled(levels):
    """Accuracy [3, 2] of two tasks; the first falls from one level to the other."""

    def accuracy(method, config, num_tasks, seed):
        learned, kept = levels[method]
        return np.array([[0.1, 0.1], [learned, 0.1], [kept, learned]]) + 0.01 * seed

    return accuracy


@pytest.fixture
def say(make_table):
    def said(levels=LEVELS, **options):
        table = make_table({method: [{}] for method in levels}, num_tasks=2, accuracy=leveled(levels), **options)
        return " ".join(findings(summary(table)))

    return said


def test_says_what_was_forgotten_and_what_kept_it(say):
    text = say()
    assert "learns each task to 91.0 % and then forgets: the earlier tasks lose 40.0 points" in text
    assert "keeper kept most: 76.0 % at the end, 5.0 points above fine-tuning" in text
    assert "forgetting 10.0 points, and learning new tasks to 81.0 % against 91.0 %" in text
    assert "(joint), the upper bound, ends at 91.0 %; keeper closes 25 % of the gap to it." in text
    assert "frozen forgot least (0.0 points) but ends lower, at 41.0 %: it learned new tasks to 41.0 %." in text
    assert "Worse than fine-tuning, by intervals that exclude 0: frozen." in text


def test_no_winner_where_none_is_better(say):
    text = say({"finetune": (0.9, 0.5), "frozen": (0.4, 0.4)})
    assert "No method is reliably better than fine-tuning: the best, frozen, ends at 41.0 %, 30.0 points below" in text
    assert "kept most" not in text and "upper bound" not in text


def test_without_fine_tuning_nothing_is_compared_to_it(say):
    text = say({"keeper": (0.8, 0.7)})
    assert text == "keeper kept most: 76.0 % at the end, forgetting 10.0 points, 81.0 % just after learning."


def test_nothing_forgotten_is_said_so(say):
    assert "learns each task to 91.0 % and forgets nothing of the earlier tasks" in say({"finetune": (0.9, 0.9)})


def test_one_seed_is_no_certainty(say):
    text = say(seeds=(0,))
    assert "One seed only" in text and "interval" not in text


def test_nothing_finished(say):
    assert say(unfinished=lambda *_: 1).startswith("No run has been trained on all tasks yet")


def test_unfinished_and_diverged_are_named(say):
    text = say(
        unfinished=lambda method, config, seed: 1 if (method, seed) == ("keeper", 0) else None,
        diverged=lambda method, config, seed: method == "frozen",
    )
    assert "Not all seeds have finished: keeper." in text and "Seeds diverged: frozen." in text


def test_one_task_has_nothing_to_forget(make_table):
    text = " ".join(findings(summary(make_table(num_tasks=1))))
    assert "on the only task" in text and "forg" not in text and "nan" not in text
