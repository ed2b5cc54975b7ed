"""Mistral: Llama's architecture; 7B-v0.1 attends to a window, which limits the length of samples here."""

from __future__ import annotations

from megatron_probsft.models.decoder import ATTENTION, MLP, NORMS, decoder_shape
from megatron_probsft.models.family import Family

FAMILY = Family("mistral", ("MistralForCausalLM",), decoder_shape, [*NORMS, *ATTENTION, *MLP])
