"""Whether stream, model and methods are of the kind that the data are: images, text that goes on, texts with labels."""

from typing import Any

from cl_jax.data import Data
from cl_jax.errors import UserError
from cl_jax.experiment import MODELS, Run
from cl_jax.tasks.stream import View, changes_images

TEXT, LABELLED = "text", "labelled text"


def check_kind(run: Run, view: View, data: Data) -> None:
    """Raises UserError where a part of the run is of another kind.

    Of models, those of `cl_jax.models` are known by the `reads` of their configs; one of the user's own without it may
    be of any kind.
    """
    if data.text is not None:
        _check_text(run, view, data)
    elif data.labelled is not None:
        _check_labelled(run, view, data)


def check_stream(run: Run, data: Data) -> None:
    """Raises UserError where a stream cannot even be built on the data: it needs rows and columns of pixels."""
    stream = run.stream
    while stream is not None:
        if data.labelled is not None and getattr(stream, "needs_images", False):
            raise _of_images(stream)
        stream = getattr(stream, "stream", None)


def _of_images(stream: Any) -> UserError:
    return UserError(
        f"stream {type(stream).__name__}() changes how images look, and the data are texts with labels: use stream "
        f"Split(), or one made of it"
    )


def _check_text(run: Run, view: View, data: Data) -> None:
    assert data.text is not None
    if view.stream.text is None:
        raise UserError(
            f"stream {type(run.stream).__name__}() is of images, and the data are text "
            f"({', '.join(data.text.domains)}): use stream Domains()"
        )
    if run.scenario != "domain":
        raise UserError(f"scenario: was given {run.scenario!r}; text, whose outputs are tokens, is read as 'domain'")
    if getattr(run.model, "reads", TEXT) != TEXT:
        raise UserError(
            f"model {type(run.model).__name__} tells the class of a text, and the data are text that goes on: use "
            f"model Decoder(), or data 'labelled:...'"
        )


def _check_labelled(run: Run, view: View, data: Data) -> None:
    assert data.labelled is not None
    if changes_images(view.stream):
        raise _of_images(run.stream)
    model = type(run.model).__name__
    if getattr(run.model, "reads", None) != LABELLED and (type(run.model) in MODELS.values()):
        raise UserError(f"model {model} does not read texts with labels, which the data are: use model Encoder()")
    known = getattr(run.model, "num_tokens", None)
    if isinstance(known, int) and known < data.labelled.num_tokens:
        raise UserError(
            f"model.num_tokens: {model} knows {known} tokens, and the tokenizer of the data has "
            f"{data.labelled.num_tokens}: use num_tokens={data.labelled.num_tokens}, or the tokenizer of the weights"
        )
    for name, method in run.methods.items():
        if getattr(method, "needs_images", False):
            raise UserError(f"methods.{name}: {type(method).__name__} is of images, and the data are texts: leave out")
