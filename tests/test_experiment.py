"""What a run is called and how it is addressed."""

import pytest

from cl_jax.experiment import ONCE, Run, address_of, hyper_parameters, stream_label
from cl_jax.parents import _differing
from cl_jax.tasks import Fuzzy, NoisyLabels, Permuted, Repeated, Scattered, Split


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
    now = hyper_parameters(Run(stream=Split()))
    once = {name: value for name, value in now.items() if name not in ONCE}
    assert set(now) - set(once) == {"boundary", "passes", "recent", "stream.class_seed"}
    assert "stream.permutations" in hyper_parameters(Run(stream=Permuted()))
    assert address_of(now) == address_of(once) and _differing(now, once) == _differing(once, now) == []
    for name, value in [("passes", 1), ("recent", 1), ("boundary", "fuzzy"), ("stream.class_seed", 0)]:
        changed = {**now, name: value}
        assert address_of(changed) != address_of(now)
        assert _differing(changed, once) == _differing(once, changed) == [name]
