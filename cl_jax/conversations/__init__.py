"""A stream of conversations: a language model is tested on each, then learns from it, and must not forget."""

from cl_jax.conversations.guard import Guard as Guard
from cl_jax.conversations.old_text import OldText as OldText
from cl_jax.conversations.policies import POLICIES as POLICIES
from cl_jax.conversations.policies import Policy as Policy
from cl_jax.conversations.run import Adapted as Adapted
from cl_jax.conversations.run import adapt as adapt
from cl_jax.conversations.settings import Adaptation as Adaptation
from cl_jax.conversations.stream import Conversations as Conversations
