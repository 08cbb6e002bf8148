"""Deep generative replay: nothing is stored; a generator trained along replays the past, its former self included."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cl_jax import errors, vae
from cl_jax.batch import Batch, Reference, Task, join
from cl_jax.config import config, static, traced
from cl_jax.losses import cross_entropy, log_probabilities
from cl_jax.method import Method, StepInfo
from cl_jax.methods.context import Context
from cl_jax.methods.replay import weights
from cl_jax.model import Model, Params

LABELS = ("hard", "soft")
NAME = "generative_replay"


class GenerativeReplayState(NamedTuple):
    """The generator in training, and generator and classifier as they were at the last boundary."""

    generator: Params  # {"encoder": ..., "decoder": ...}
    moments: Any  # Adam's
    old_decoder: Params  # all of the old generator that is needed to replay
    old_classifier: Params
    met: jax.Array  # bool [C], outputs that training examples had
    learned: jax.Array  # bool [C], those of finished tasks
    tasks_finished: jax.Array  # int32 []


def generative_replay(
    model: Model,
    *,
    hidden: Sequence[int] = (400, 400),
    num_latent: int = 100,
    learning_rate: jax.Array | float = 1e-3,
    batch_size: int | None = None,
    labels: str = "hard",
    temperature: jax.Array | float = 2.0,
    head_size: int | None = None,
) -> Method:
    """Joins to the B incoming examples R generated ones, labelled by the old classifier, in every task but the first.

    With t the number of tasks so far, the present one included, both the classifier and the generator descend on

        1 / t * mean over the incoming + (1 - 1 / t) * mean over the generated

    (incoming weights u_i instead of the mean where the batch has them), the classifier of the loss of each example, the
    generator of `cl_jax.vae.negative_elbo`, with Adam, one step a training step, on R generated examples of its own.
    Generated are sigmoid(decoder(z)), z ~ N(0, 1), of the decoder at the last boundary. Their labels are those of the
    classifier at the last boundary, z_c its logits, over the outputs of finished tasks:

        hard: y = argmax_c z_c, loss = -log p_y
        soft: loss = -T^2 sum_c q_c log p_c(T), q = softmax(z / T), p(T) = softmax(logits / T) over the active outputs

    Active for them is every output that was learned or is active for some incoming example. Where `head_size` outputs
    share a softmax (task-incremental), each generated example goes to the head of one finished task, uniformly drawn,
    which stands for all of them: it is labelled and trained there.

    Soft labels take the place of the task loss on generated examples: `Method.loss` adds the difference, so what is
    recorded as the task loss stays the cross-entropy of the hard labels.

    Args:
        model: the classifier.
        hidden, num_latent: widths of the generator, see `cl_jax.vae.vae`. Its state takes 4 times the decoder's
            parameters (parameters, two moments, old ones), 3 times the encoder's, and once the classifier's.
        learning_rate: the generator's, may be traced.
        batch_size: R; None: as many as come in.
        labels: "hard" or "soft".
        temperature: T, may be traced.
        head_size: outputs that share a softmax, in order; None: all.

    A generator that has trained too little does harm, since what it makes is trained on as if it were the past: with
    200 steps a task it ended far below fine-tuning on permuted digits, with 1500 steps far above.

    Inputs have to lie in [0, 1]. Generated rows refer to no data set: their `reference`, where incoming rows have one,
    is -1.

    Raises:
        UserError: unknown labels; a size below 1. While tracing: outputs that `head_size` does not divide.

    Source: Shin et al. 2017, arXiv 1705.08690 (with a GAN); van de Ven et al. 2020, Nature Communications 11, and its
        code (VAE, weights 1 / t, widths and sizes; there the losses of the generator are divided by the number of
        pixels, which Adam hardly notices, and soft labels lack the factor T^2 since 2020).
    """
    if labels not in LABELS:
        raise errors.unknown("labels of generated examples", labels, LABELS)
    sizes = {"num_latent": num_latent, "batch_size": batch_size, "head_size": head_size}
    for name, number in {**sizes, "hidden": min(hidden, default=1)}.items():
        if number is not None and number < 1:
            raise errors.UserError(f"generative replay {name} {number}: must be at least 1")
    optimizer = optax.scale_by_adam()

    def generator_of(batch: Batch) -> vae.Vae:
        return vae.vae(math.prod(batch.x.shape[1:]), hidden, num_latent)

    def init(key: jax.Array, params: Params, batch: Batch) -> GenerativeReplayState:
        num_outputs = jax.eval_shape(model.apply, params, batch.x).shape[1]
        if head_size is not None and num_outputs % head_size:
            raise errors.UserError(f"generative replay head_size {head_size} does not divide the {num_outputs} outputs")
        generator = vae.init(key, generator_of(batch))
        nothing = jnp.zeros((num_outputs,), bool)
        return GenerativeReplayState(
            generator, optimizer.init(generator), generator["decoder"], params, nothing, nothing,
            jnp.zeros((), jnp.int32),
        )  # fmt: skip

    def draw(key: jax.Array, state: GenerativeReplayState, params: Params, batch: Batch) -> Batch:
        key_input, key_head = jax.random.split(key)
        num = batch_size or batch.y.shape[0]
        x = vae.generate(key_input, generator_of(batch), state.old_decoder, num).reshape(num, *batch.x.shape[1:])
        own = _heads(key_head, state.learned, head_size, num)
        logits = jnp.where(own & state.learned[None, :], model.apply(state.old_classifier, x), -jnp.inf)
        generated = Batch(x, jnp.argmax(logits, axis=1).astype(jnp.int32))
        if batch.active is not None:
            open_outputs = state.learned | jnp.any(batch.active, axis=0)
            generated = generated._replace(active=own & open_outputs[None, :])
        if batch.reference is not None:
            nowhere = jnp.full((num,), -1, jnp.int32)
            generated = generated._replace(reference=Reference(nowhere, nowhere))
        if labels == "soft":
            known = logits > -jnp.inf
            target = jnp.where(known, jnp.exp(log_probabilities(logits / temperature, known)), 0.0)
            generated = generated._replace(extra={NAME: {"target": target, "soft": jnp.ones((num,), jnp.float32)}})
        return join(batch, generated)._replace(weight=_weights(state, batch, num))

    def soft_loss(state: GenerativeReplayState, logits: jax.Array, batch: Batch) -> jax.Array:
        assert batch.extra is not None and batch.weight is not None
        told = batch.extra[NAME]
        soft = soft_cross_entropy(logits, told["target"], batch.active, temperature)
        return jnp.sum(batch.weight * told["soft"] * (soft - cross_entropy(logits, batch.y, batch.active)))

    def after_step(key: jax.Array, state: GenerativeReplayState, info: StepInfo) -> GenerativeReplayState:
        key_input, key_noise = jax.random.split(key)
        incoming, generator = info.incoming, generator_of(info.incoming)
        num_incoming = incoming.y.shape[0]
        num = batch_size or num_incoming
        generated = vae.generate(key_input, generator, state.old_decoder, num)
        x = jnp.concatenate([incoming.x.reshape(num_incoming, -1), generated])
        noise = jax.random.normal(key_noise, (num_incoming + num, num_latent), jnp.float32)
        weight = _weights(state, incoming, num)

        def loss(params: Params) -> jax.Array:
            return jnp.sum(weight * vae.negative_elbo(generator, params, noise, x))

        gradient = jax.grad(loss)(state.generator)
        with jax.numpy_dtype_promotion("standard"):  # Adam of optax takes a float to an integer power
            updates, moments = optimizer.update(gradient, state.moments)
        return state._replace(
            generator=jax.tree.map(lambda p, u: p - learning_rate * u, state.generator, updates),
            moments=moments,
            met=state.met.at[incoming.y].set(True),
        )

    def end_task(key: jax.Array, state: GenerativeReplayState, params: Params, task: Task) -> GenerativeReplayState:
        return state._replace(
            old_decoder=state.generator["decoder"],
            old_classifier=params,
            learned=state.met,
            tasks_finished=state.tasks_finished + 1,
        )

    method = Method(init=init, draw=draw, after_step=after_step, end_task=end_task)
    return method._replace(loss=soft_loss) if labels == "soft" else method


def soft_cross_entropy(
    logits: jax.Array, target: jax.Array, active: jax.Array | None, temperature: jax.Array | float
) -> jax.Array:
    """-T^2 sum_c q_c log softmax(z / T)_c over the active outputs; outputs of q_c = 0 add nothing: float32 [B].

    Source: Hinton et al. 2015, arXiv 1503.02531 (T^2 keeps the gradient's size whatever T).
    """
    log_p = log_probabilities(logits / temperature, active)
    return -(temperature**2) * jnp.sum(jnp.where(target > 0, target * log_p, 0.0), axis=1)


def _weights(state: GenerativeReplayState, incoming: Batch, num: int) -> jax.Array:
    """float32 [B + R]: 1 / t over the incoming, 1 - 1 / t over the generated ones."""
    replays = jnp.broadcast_to(state.tasks_finished > 0, (num,))
    return weights("balanced", incoming, replays, state.tasks_finished + 1)


def _heads(key: jax.Array, learned: jax.Array, head_size: int | None, num: int) -> jax.Array:
    """bool [num, C]: the outputs of the head that each generated example goes to, uniformly one of those learned."""
    size = head_size or learned.shape[0]
    number = jnp.arange(learned.shape[0], dtype=jnp.int32) // size
    open_heads = jnp.any(learned.reshape(-1, size), axis=1)
    drawn = jax.random.categorical(key, jnp.where(open_heads, 0.0, -jnp.inf), shape=(num,))
    return number[None, :] == drawn.astype(jnp.int32)[:, None]


@config
class GenerativeReplay:
    """See `generative_replay`. As many examples are generated as come in, `ratio` times."""

    needs_labels: ClassVar[bool] = True
    needs_images: ClassVar[bool] = True
    mixes_tasks: ClassVar[bool] = True

    hidden: tuple[int, ...] = static((400, 400), low=1)
    num_latent: int = static(100, low=1)
    learning_rate: float = traced(1e-3)
    ratio: int = static(1, low=1)
    labels: str = static("hard", choices=LABELS)
    temperature: float = traced(2.0, low=0.01)

    def build(self, context: Context) -> Method:
        return generative_replay(
            context.model, hidden=self.hidden, num_latent=self.num_latent, learning_rate=self.learning_rate,
            batch_size=self.ratio * context.batch_size, labels=self.labels, temperature=self.temperature,
            head_size=context.head_size,
        )  # fmt: skip
