"""Llama 2, 3, 3.1, 3.2 and models of the same architecture: SmolLM2, DeepSeek-LLM, DeepSeek-Math, …"""

from __future__ import annotations

from megatron_probsft.models.decoder import ATTENTION, MLP, NORMS, decoder_shape
from megatron_probsft.models.family import Family

FAMILY = Family("llama", ("LlamaForCausalLM",), decoder_shape, [*NORMS, *ATTENTION, *MLP])
