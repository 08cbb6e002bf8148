"""Convolution as patches times a matrix, max-pooling as a maximum of slices, global average pooling.

On a CPU, XLA runs `lax.conv_general_dilated` inside a loop (every training loop here is one) more than ten times slower
than this, and under `vmap` with kernels of each member's own it becomes a grouped convolution, slow everywhere; here it
becomes a batched matrix product. One member alone on a GPU may be faster with the library's: see `convolution`.

Shapes: B examples, H x W positions, C channels in, K = window * window * C, O channels out; channels last.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

CONVOLUTIONS = ("patches", "library")
PADDINGS = ("SAME", "VALID")


def convolution(
    x: jax.Array,
    kernel: jax.Array,
    window: int = 3,
    stride: int = 1,
    padding: str = "SAME",
    implementation: str = "patches",
) -> jax.Array:
    """y[b, i, j] = patches(x)[b, i, j] @ kernel, a cross-correlation as in every deep-learning library.

    Args:
        x: float [B, H, W, C].
        kernel: float [K, O]: `lax`'s HWIO kernel [window, window, C, O] reshaped, so rows are (row, column, channel).
        padding: "SAME": ceil(H / stride) rows out, zeros around; an odd number of rows of zeros has the larger half
            below, as in XLA and TensorFlow (PyTorch's padding=1 with stride 2 puts it above). "VALID": no zeros.
        implementation: "patches", or "library" for `lax.conv_general_dilated`. The first is the right one on a CPU,
            and wherever members with kernels of their own run side by side.

    Returns:
        float [B, H', W', O].
    """
    if implementation == "patches":
        rows = patches(x, window, stride, padding)
        # Matrices and not arrays of rank 4: XLA would copy the latter before the products of the backward pass.
        return (rows.reshape(-1, kernel.shape[0]) @ kernel).reshape(*rows.shape[:3], kernel.shape[1])
    hwio = kernel.reshape(window, window, x.shape[3], kernel.shape[1])
    return lax.conv_general_dilated(x, hwio, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def patches(x: jax.Array, window: int, stride: int = 1, padding: str = "SAME") -> jax.Array:
    """What each output position of a convolution sees: [B, H', W', K] from [B, H, W, C]."""
    (top, bottom, rows), (left, right, columns) = (_extent(size, window, stride, padding) for size in x.shape[1:3])
    if window == 1:
        return x[:, ::stride, ::stride]
    x = jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    height, width = (rows - 1) * stride + 1, (columns - 1) * stride + 1
    taps = [x[:, i : i + height : stride, j : j + width : stride] for i in range(window) for j in range(window)]
    return jnp.concatenate(taps, axis=3)


@patches.defjvp
def _patches_jvp(
    window: int, stride: int, padding: str, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """The same linear map, written for its transpose, which is the backward pass: one pad of the cotangent and a sum
    of slices of it, up to 3.5 times as fast on a CPU as the sum of padded slices that the formula above gives.
    """
    x, t = primals[0], tangents[0]
    (top, _, rows), (left, _, columns) = (_extent(size, window, stride, padding) for size in x.shape[1:3])
    y = patches(x, window, stride, padding)
    if window == 1:
        return y, t[:, ::stride, ::stride]
    shifts_h, crop_h = _frame(x.shape[1], top, rows, window, stride)
    shifts_w, crop_w = _frame(x.shape[2], left, columns, window, stride)
    zero = jnp.zeros((), t.dtype)
    taps = [lax.pad(t, zero, ((0, 0, 0), (*h, 0), (*w, 0), (0, 0, 0))) for h in shifts_h for w in shifts_w]
    return y, jnp.concatenate(taps, axis=3)[:, crop_h, crop_w]


def _extent(size: int, window: int, stride: int, padding: str) -> tuple[int, int, int]:
    """Zeros before, zeros after, and positions out, along one axis."""
    if padding == "VALID":
        return 0, 0, (size - window) // stride + 1
    out = -(-size // stride)
    zeros = max((out - 1) * stride + window - size, 0)
    return zeros // 2, zeros - zeros // 2, out


def _frame(size: int, before: int, out: int, window: int, stride: int) -> tuple[list[tuple[int, int]], slice]:
    """Along one axis: the padding that puts each tap's copy of the input into one frame, and the outputs in it."""
    margin, reach = max(window - 1 - before, 0), (out - 1) * stride + 1
    length = margin + max(before + size, reach)
    starts = [margin + before - tap for tap in range(window)]
    return [(start, length - size - start) for start in starts], slice(margin, margin + reach, stride)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def max_pool(x: jax.Array, window: int = 2) -> jax.Array:
    """The largest of each window x window tile: [B, H // window, W // window, C] from [B, H, W, C].

    Rows and columns that fill no tile are dropped, as PyTorch does. Among equals the first, row by row, gets the
    whole gradient, as in PyTorch. (Reducing the tiled array with `jnp.max` costs five times as much on a CPU.)
    """
    return functools.reduce(jnp.maximum, _members(_tiles(x, window)))


@max_pool.defjvp
def _max_pool_jvp(window: int, primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    members = _members(_tiles(primals[0], window))
    largest = functools.reduce(jnp.maximum, members)
    winner = jnp.full(largest.shape, len(members) - 1, jnp.int32)
    for number in reversed(range(len(members) - 1)):
        winner = jnp.where(members[number] == largest, jnp.int32(number), winner)
    numbers = jnp.arange(window * window, dtype=jnp.int32).reshape(1, 1, window, 1, window, 1)
    wins = winner[:, :, None, :, None] == numbers
    tangent = _tiles(tangents[0], window)
    return largest, jnp.sum(jnp.where(wins, tangent, jnp.zeros_like(tangent)), axis=(2, 4))


def _tiles(x: jax.Array, window: int) -> jax.Array:
    num, height, width, channels = x.shape
    rows, columns = height // window, width // window
    x = x[:, : rows * window, : columns * window]
    return x.reshape(num, rows, window, columns, window, channels)


def _members(tiles: jax.Array) -> list[jax.Array]:
    return [tiles[:, :, i, :, j] for i in range(tiles.shape[2]) for j in range(tiles.shape[4])]


def global_average_pool(x: jax.Array) -> jax.Array:
    """The mean over positions: [B, C] from [B, H, W, C]."""
    return jnp.mean(x, axis=(1, 2))
