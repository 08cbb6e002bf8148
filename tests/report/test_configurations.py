"""How members become configurations, and which of them a method is shown by."""

import numpy as np
import pyarrow as pa
import pytest

from cl_jax.errors import UserError
from cl_jax.report.streams import read

STRENGTH = "methods.ewc.strength"


def flat(levels):
    """Accuracy of a member from its strength alone, whatever the task."""
    return lambda method, config, num_tasks, seed: np.full((num_tasks + 1, num_tasks), levels[config.get(STRENGTH)])


def ewc(*strengths):
    return {"ewc": [{STRENGTH: strength} for strength in strengths]}


def test_members_differ_by_seed_only(make_table):
    (stream,) = read(make_table(ewc(1.0, 10.0), seeds=(2, 0, 1), num_tasks=4))
    assert stream.num_tasks == 4 and [len(each.members) for each in stream.configurations] == [3, 3]
    assert [each.hyper_parameters for each in stream.configurations] == [{STRENGTH: 1.0}, {STRENGTH: 10.0}]
    np.testing.assert_array_equal(stream.configurations[0].seeds, [0, 1, 2])
    assert stream.configurations[0].matrix["test"].shape == (3, 4, 4)
    assert stream.swept == {"ewc": [STRENGTH]}


def test_a_seed_among_the_hyper_parameters_is_no_hyper_parameter(make_table):
    table = make_table(ewc(1.0))
    (stream,) = read(table.append_column("config.seed", table["seed"]))
    assert len(stream.configurations) == 1 and stream.swept == {"ewc": []}


def test_chosen_by_validation_not_by_test(make_table):
    table = make_table(
        ewc(1.0, 10.0, 100.0),
        accuracy=flat({1.0: 0.5, 10.0: 0.8, 100.0: 0.7}),
        test=flat({1.0: 0.9, 10.0: 0.6, 100.0: 0.95}),
    )
    (stream,) = read(table)
    assert stream.chosen["ewc"].hyper_parameters == {STRENGTH: 10.0}


def test_chosen_over_all_seeds(make_table):
    # Strength 1 has the best single seed, strength 10 the best mean.
    def accuracy(method, config, num_tasks, seed):
        return np.full((num_tasks + 1, num_tasks), {1.0: (0.9, 0.1), 10.0: (0.6, 0.6)}[config[STRENGTH]][seed])

    (stream,) = read(make_table(ewc(1.0, 10.0), seeds=(0, 1), accuracy=accuracy))
    assert stream.chosen["ewc"].hyper_parameters == {STRENGTH: 10.0}


def test_order_is_not_that_of_the_table_and_ties_go_to_the_first(make_table):
    methods = {"joint": [{}], **ewc(10.0, 1.0, 100.0), "finetune": [{}]}
    (stream,) = read(make_table(methods, accuracy=flat({1.0: 0.5, 10.0: 0.5, 100.0: 0.5, None: 0.5})))
    assert list(stream.chosen) == ["finetune", "ewc", "joint"]
    assert [each.hyper_parameters[STRENGTH] for each in stream.of("ewc")] == [1.0, 10.0, 100.0]
    assert stream.chosen["ewc"].hyper_parameters == {STRENGTH: 1.0}


LEVELS = {1.0: 0.9, 10.0: 0.5}


def test_a_diverged_configuration_is_chosen_only_if_there_is_no_other(make_table):
    def diverged(method, config, seed):
        return config[STRENGTH] == 1.0 and seed == 1

    (stream,) = read(make_table(ewc(1.0, 10.0), accuracy=flat(LEVELS), diverged=diverged))
    assert stream.chosen["ewc"].hyper_parameters == {STRENGTH: 10.0}
    assert [each.diverged.sum() for each in stream.configurations] == [1, 0]
    (stream,) = read(make_table(ewc(1.0), accuracy=flat(LEVELS), diverged=diverged))
    assert stream.chosen["ewc"].hyper_parameters == {STRENGTH: 1.0}


def test_divergence_flagged_on_some_rows_counts(make_table):
    table = make_table(ewc(1.0), num_tasks=3)
    late = pa.array(np.asarray(table["after_task"]) == 3)
    (stream,) = read(table.set_column(table.column_names.index("diverged"), "diverged", late))
    assert stream.configurations[0].diverged.all()


def test_an_unfinished_configuration_is_chosen_only_if_there_is_no_other(make_table):
    def unfinished(method, config, seed):
        return 2 if config[STRENGTH] == 1.0 and seed == 1 else None

    (stream,) = read(make_table(ewc(1.0, 10.0), accuracy=flat(LEVELS), unfinished=unfinished))
    assert stream.chosen["ewc"].hyper_parameters == {STRENGTH: 10.0}
    np.testing.assert_array_equal(stream.configurations[0].complete, [True, False, True])
    assert stream.configurations[0].scores("average_accuracy").shape == (2,)


def test_number_of_tasks_given_where_the_table_cannot_show_it(make_table):
    table = make_table(ewc(1.0), num_tasks=3)  # all of it, or a run of 5 tasks whose future ones are not evaluated
    assert read(table)[0].configurations[0].complete.all()
    assert not read(table, {table["stream"][0].as_py(): 5})[0].configurations[0].complete.any()


@pytest.mark.parametrize("scenario", ["domain", "task", "class"])
def test_forward_transfer_is_undefined_in_class_incremental_streams(make_table, scenario):
    (stream,) = read(make_table(ewc(1.0), stream=f"digits/{scenario}"))
    defined = np.isfinite(stream.configurations[0].scores("forward_transfer"))
    np.testing.assert_array_equal(defined, scenario != "class")


def test_only_the_last_row_is_enough_for_average_accuracy(make_table):
    table = make_table({"joint": [{}]})
    (stream,) = read(table.filter(pa.array(np.asarray(table["after_task"]) == 5)))
    joint = stream.chosen["joint"]
    assert joint.complete.all() and np.isfinite(joint.scores("average_accuracy")).all()
    assert np.isnan(joint.scores("forgetting")).all()


def test_storage_makes_no_difference(make_table):
    parts = [make_table(ewc(1.0, 10.0), stream=stream) for stream in ("a/domain", "b/domain")]
    chunked = pa.concat_tables(parts)
    encoded = chunked
    for name in ("member", "method", "stream", "split", "metric"):
        encoded = encoded.set_column(encoded.column_names.index(name), name, encoded[name].dictionary_encode())
    for one, other in zip(read(chunked), read(encoded), strict=True):
        assert one.label == other.label and list(one.chosen) == list(other.chosen)
        np.testing.assert_array_equal(one.chosen["ewc"].matrix["test"], other.chosen["ewc"].matrix["test"])


def test_mistakes_are_named(make_table):
    table = make_table(ewc(1.0))
    with pytest.raises(UserError, match="lacks diverged, split"):
        read(table.drop_columns(["diverged", "split"]))
    with pytest.raises(UserError, match="empty"):
        read(table.slice(0, 0))
    with pytest.raises(UserError, match="same seed and hyper-parameters"):
        read(make_table(ewc(1.0, 10.0)).drop_columns([f"config.{STRENGTH}"]))
