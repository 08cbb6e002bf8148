"""Optimizers as configs: which direction to step in. The learning rate is applied by the training step."""

from typing import Any

import optax

from cl_jax.config import child, config, static, traced


@config
class Clip:
    """Each number of the gradient is cut to [-most, most] (optax.clip)."""

    most: float = traced(1.0)


@config
class Sgd:
    """theta <- theta - learning_rate * m, m <- momentum * m + gradient.

    `nesterov` is left to optax's definition. `reset`: forget the momentum at every task boundary. `clip`: first cut
    each number of the gradient to [-clip, clip].
    """

    learning_rate: float = traced(0.1)
    momentum: float = traced(0.0, high=1.0)
    nesterov: bool = static(False)
    use_momentum: bool = static(False)
    reset: bool = static(False)
    clip: Clip | None = child(optional=Clip, later=True)

    def build(self) -> optax.GradientTransformation:
        parts = [optax.scale(-1.0)]
        if self.use_momentum:
            parts.insert(0, optax.trace(decay=self.momentum, nesterov=self.nesterov))
        if self.clip is not None:
            parts.insert(0, optax.clip(self.clip.most))
        return parts[0] if len(parts) == 1 else optax.chain(*parts)


@config
class Adam:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980): step = learning_rate * m_hat / (sqrt(v_hat) + epsilon).

    `reset`: start the moments and the bias correction anew at every task boundary.
    """

    learning_rate: float = traced(1e-3)
    beta1: float = traced(0.9, high=1.0)
    beta2: float = traced(0.999, high=1.0)
    epsilon: float = traced(1e-8)
    reset: bool = static(False)

    def build(self) -> optax.GradientTransformation:
        return optax.chain(optax.scale_by_adam(self.beta1, self.beta2, self.epsilon), optax.scale(-1.0))


@config
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101), as PyTorch has it:
    step = learning_rate * (m_hat / (sqrt(v_hat) + epsilon) + weight_decay * theta), of all that trains, biases too.

    `reset`: as Adam's.
    """

    learning_rate: float = traced(1e-3)
    beta1: float = traced(0.9, high=1.0)
    beta2: float = traced(0.999, high=1.0)
    epsilon: float = traced(1e-8)
    weight_decay: float = traced(1e-2)
    reset: bool = static(False)

    def build(self) -> optax.GradientTransformation:
        adam = optax.scale_by_adam(self.beta1, self.beta2, self.epsilon)
        return optax.chain(adam, optax.add_decayed_weights(self.weight_decay), optax.scale(-1.0))


@config
class RmsProp:
    """RMSProp (Tieleman and Hinton 2012, lecture 6.5), as PyTorch has it: v <- decay * v + (1 - decay) * gradient^2,
    step = learning_rate * gradient / (sqrt(v) + epsilon), from v = 0 and without bias correction.

    `reset`: start v anew at every task boundary.
    """

    learning_rate: float = traced(1e-3)
    decay: float = traced(0.99, high=1.0)
    epsilon: float = traced(1e-8)
    reset: bool = static(False)

    def build(self) -> optax.GradientTransformation:
        rms = optax.scale_by_rms(self.decay, self.epsilon, eps_in_sqrt=False)
        return optax.chain(rms, optax.scale(-1.0))


@config
class Adagrad:
    """Adagrad (Duchi et al. 2011, JMLR 12): s <- s + gradient^2, step = learning_rate * gradient / sqrt(s + epsilon),
    from s = 0.

    Steps only ever become smaller, so that later tasks are learned at lower rates. `reset`: start s anew at every task
    boundary.
    """

    learning_rate: float = traced(1e-2)
    epsilon: float = traced(1e-10)
    reset: bool = static(False)

    def build(self) -> optax.GradientTransformation:
        return optax.chain(optax.scale_by_rss(0.0, self.epsilon), optax.scale(-1.0))


OPTIMIZERS: dict[str, Any] = {"sgd": Sgd, "adam": Adam, "adamw": AdamW, "rmsprop": RmsProp, "adagrad": Adagrad}
