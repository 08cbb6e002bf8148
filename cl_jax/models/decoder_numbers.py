"""Numbers that make no decoder, told before anything is built of them."""

from collections.abc import Iterator
from typing import Any

from cl_jax.errors import UserError
from cl_jax.models.rotary import Scaling


def even_head_width(width: int, heads: int) -> int:
    if width % heads:
        near = sorted({max(heads, width - width % heads), width - width % heads + heads})
        raise UserError(
            f"decoder: width {width} is not divisible by {heads} heads; allowed: widths such as "
            f"{' or '.join(map(str, near))}, or give head_width, the numbers of a head"
        )
    return width // heads


def check_numbers(heads: int, kv_heads: int, head_width: int, rope_base: float, norm_epsilon: float) -> None:
    if head_width % 2:
        raise UserError(
            f"decoder: a head has {head_width} numbers; allowed is an even number, since rotary positions turn pairs "
            f"of them: give an even head_width, or another width or number of heads"
        )
    if heads % kv_heads:
        near = [number for number in _divisors(heads) if number <= kv_heads]
        raise UserError(
            f"decoder: {heads} heads cannot share {kv_heads} keys and values evenly; allowed kv_heads are the divisors "
            f"of heads: {', '.join(map(str, _divisors(heads)))}. Did you mean {max(near)}?"
        )
    if not rope_base > 0 or not norm_epsilon >= 0:
        raise UserError(
            f"decoder: was given rope_base {rope_base!r} and norm_epsilon {norm_epsilon!r}; allowed are a rope_base "
            f"above 0 (10000 in Llama) and a norm_epsilon of at least 0 (1e-5)"
        )


def checked_scaling(numbers: Any) -> Scaling:
    try:
        made = Scaling(*numbers)
        if made.factor >= 1 and 0 < made.low < made.high and made.context >= 1:
            return made
    except TypeError:
        pass
    raise UserError(
        f"decoder: was given rope_scaling {numbers!r}; allowed is None, or (factor, low, high, context) with a factor "
        f"of at least 1, 0 < low < high and a context of at least 1, such as (8.0, 1.0, 4.0, 8192) in Llama 3.1"
    )


def _divisors(number: int) -> Iterator[int]:
    return (divisor for divisor in range(1, number + 1) if number % divisor == 0)
