"""Domains of text, one after another: code, then customer support, then prose."""

from cl_jax.config import config, static
from cl_jax.data import Data
from cl_jax.errors import UserError
from cl_jax.tasks.stream import Stream


@config
class Domains:
    """Each task is one of the domains that the data names, in their order.

    Attributes:
        num_tasks: T; the first T domains.
    """

    num_tasks: int = static(2, low=1)

    def build(self, data: Data) -> Stream:
        if data.labelled is not None:
            raise UserError("stream Domains() is of text that goes on, and the data are texts with labels: use Split()")
        if data.text is None:
            raise UserError("stream Domains() is of text, and the data are images: use data 'text:<domain>,<domain>'")
        known = data.text.domains
        if self.num_tasks > len(known):
            raise UserError(
                f"stream.num_tasks: was given {self.num_tasks} domains, but the data has {len(known)} "
                f"({', '.join(known)}), which is the most allowed: name more of them in data"
            )
        return Stream(
            num_tasks=self.num_tasks,
            classes_per_task=1,
            task_of=lambda tables, label: label,
            text=data.text,
        )
