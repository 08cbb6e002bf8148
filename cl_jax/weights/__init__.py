"""Open weights in and out: safetensors as the Llama, Qwen2 and Qwen3 families have them, adapters as PEFT has them;
and encoders of the BERT family in.
"""

from cl_jax.weights.bert import read_encoder as read_encoder
from cl_jax.weights.llama import load_weights as load_weights
from cl_jax.weights.llama import save_weights as save_weights
from cl_jax.weights.peft import load_adapter as load_adapter
from cl_jax.weights.peft import save_adapter as save_adapter
