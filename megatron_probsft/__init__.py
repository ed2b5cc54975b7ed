"""Supervised fine-tuning on Megatron-Core with any function of the label probability as objective."""
