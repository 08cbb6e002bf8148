"""What the tasks and the numbers of a stream are called: task 2 and accuracy, or support and bits per byte."""

from collections.abc import Sequence
from typing import NamedTuple


class Wording(NamedTuple):
    """The words for one stream."""

    score: str = "accuracy"  # what is measured
    fall: str = "fall"  # how it looks when the score gets worse
    task: str = "task"
    names: tuple[str, ...] = ()  # of the tasks, in their order; (): they go by number

    @property
    def tasks(self) -> str:
        return f"{self.task}s"

    @property
    def axis(self) -> str:
        """The name of an axis of `ticks`: after which of them."""
        return "after training on" if self.names else f"{self.tasks} trained"

    def one(self, number: int) -> str:
        """`task 3`, or its name."""
        if self.names:
            return self.names[number - 1] if number else "no training"
        return f"{self.task} {number}"

    def span(self, first: int, last: int) -> str:
        """`task 3`, `tasks 2 to 5`, or `support and prose`."""
        if first == last:
            return self.one(first)
        if not self.names:
            return f"{self.tasks} {first} to {last}"
        *others, end = self.names[first - 1 : last]
        return f"{', '.join(others)} and {end}"

    def reached(self, number: int, of: int) -> str:
        """`task 2 of 5`, or `support, 2 of 3 domains`."""
        return f"{self.one(number)}, {number} of {self.several(of)}" if self.names else f"{self.one(number)} of {of}"

    def several(self, number: int) -> str:
        """`1 task`, `5 tasks`."""
        return f"{number} {self.task}" + "s" * (number != 1)

    def ticks(self, numbers: Sequence[int]) -> list[str]:
        """What stands at an axis."""
        return [self.names[number - 1] if self.names else str(number) for number in numbers]


TASKS = Wording()
