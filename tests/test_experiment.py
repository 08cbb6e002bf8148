"""What a run is called and how it is addressed."""

import pytest

from cl_jax.config import replace
from cl_jax.experiment import Run, address_of, hyper_parameters, stream_label
from cl_jax.tasks import Fuzzy, NoisyLabels, Repeated, Scattered, Split


@pytest.mark.parametrize(
    ("run", "label"),
    [
        (Run(), "permuted-digits/domain"),
        (Run(data="idx:/a/mnist", scenario="class", stream=Split()), "split-mnist/class"),
        (Run(stream=Repeated(stream=Split())), "repeated-split-digits/domain"),
        (Run(boundary=Fuzzy(width=0.25)), "fuzzy0.25-permuted-digits/domain"),
        (
            Run(boundary=Scattered(share=1), stream=NoisyLabels(share=0.2, stream=Split()), data="tfds:mnist"),
            "scattered1-noisylabels0.2-split-mnist/domain",
        ),
    ],
)
def test_a_streams_label_says_what_it_is_made_of(run: Run, label: str) -> None:
    assert stream_label(run) == label


def test_settings_that_came_later_leave_addresses_as_they_were() -> None:
    split = Run(stream=Split())
    changes = [(Run(), "stream.permutations", "derived"), (split, "stream.class_seed", 0)]
    changes += [(split, name, value) for name, value in (("passes", 1), ("recent", 1), ("boundary", Fuzzy()))]
    for run, name, value in changes:
        before, after = hyper_parameters(run), hyper_parameters(replace(run, {name: value}))
        assert name not in before and address_of(before) != address_of(after)
        expected = {name: value, **({"boundary": "fuzzy", "boundary.width": 0.5} if name == "boundary" else {})}
        assert after == {**before, **expected}
