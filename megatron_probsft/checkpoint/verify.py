"""Our Megatron model run beside transformers' on a text: log-probabilities and hidden states are compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from transformers import AutoModelForCausalLM

from megatron_probsft.checkpoint.hf.safetensors_folder import TensorReader
from megatron_probsft.checkpoint.hf.weights import check_tensors, load_hf_weights
from megatron_probsft.checkpoint.megatron.torch_dist import load_model
from megatron_probsft.checkpoint.megatron.torch_dist_reader import BlockReader
from megatron_probsft.checkpoint.verdict import Outputs, Verdict, compare
from megatron_probsft.models.build import build_model, transformer_config
from megatron_probsft.models.hf_model import HFModel, read_hf_model
from megatron_probsft.models.layout import Parallelism
from megatron_probsft.runtime.device import current_device, exact_float32_products
from megatron_probsft.runtime.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@torch.no_grad()
@exact_float32_products()
def verify(
    hf: HFModel,
    checkpoint: Path | None,
    token_ids: list[int],
    dtypes: list[str],
    log: Callable[[str], None],
) -> list[Verdict]:
    """A verdict for each of the dtypes. One model at a time is in memory; needs groups of one process.

    Args:
        hf: the Hugging Face folder that transformers runs.
        checkpoint: the Megatron checkpoint whose weights our model gets; None: those of the folder.
        log: is called with the name of each model before it runs.

    Raises:
        UserError: a text of fewer than two tokens, longer than the model's context, or with tokens that the
            embedding has no row for; weights that cannot be read or are not those of config.json.
    """
    if not 2 <= len(token_ids) <= hf.shape.max_position_embeddings:
        raise UserError(
            f"the text has {len(token_ids)} tokens; it needs 2 to {hf.shape.max_position_embeddings}, the "
            "model's context"
        )
    if max(token_ids) >= hf.shape.vocab_size:
        raise UserError(
            f"the tokenizer makes id {max(token_ids)} of the text, but {hf.folder / 'config.json'} has "
            f"vocab_size {hf.shape.vocab_size}: it is another model's, or has tokens that got no rows"
        )
    check_tensors(TensorReader(hf.folder), hf)
    if checkpoint is not None:
        _check_vocabulary(checkpoint, hf)
    log("transformers, fp32")
    exact = _transformers(hf, token_ids, torch.float32)
    verdicts = []
    for name in dtypes:
        log(f"Megatron, {name}")
        ours, theirs = _megatron(hf, checkpoint, token_ids, DTYPES[name]), exact
        if name != "fp32":
            log(f"transformers, {name}")
            theirs = _transformers(hf, token_ids, DTYPES[name])
        verdicts.append(compare(name, ours, exact, theirs, token_ids))
    return verdicts


def _check_vocabulary(checkpoint: Path, hf: HFModel) -> None:
    """Refuse another vocabulary. More rows are padding; fewer ones Megatron-Core would fill up."""
    embedding = BlockReader(checkpoint).tensors.get("embedding.word_embeddings.weight")
    rows = embedding.size[0] if embedding else 0
    own = checkpoint / "hf" / "config.json"
    vocabulary = (
        read_hf_model(own.parent).shape.vocab_size if own.is_file() else min(rows, hf.shape.vocab_size)
    )
    if vocabulary != hf.shape.vocab_size or rows < vocabulary:
        raise UserError(
            f"{checkpoint} has an embedding of {rows} rows, {vocabulary} of them the vocabulary's, but "
            f"{hf.folder / 'config.json'} has vocab_size {hf.shape.vocab_size}: they are different models"
        )


def _transformers(hf: HFModel, token_ids: list[int], dtype: torch.dtype) -> Outputs:
    device = current_device()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(hf.folder, dtype=dtype)
    except Exception as error:  # of what weights and config may have, transformers raises many kinds
        raise UserError(f"transformers cannot load {hf.folder}: {' '.join(str(error).split())}") from None
    model.to(device).eval()
    body = model.model
    places = _places(body.embed_tokens, list(body.layers), body.norm)
    hidden = _watch(places, lambda output: output[0])
    logits = model(torch.tensor([token_ids], device=device)).logits[0]
    return Outputs(logits.float().cpu(), hidden)


def _megatron(hf: HFModel, checkpoint: Path | None, token_ids: list[int], dtype: torch.dtype) -> Outputs:
    (model,) = build_model(hf, transformer_config(hf.shape, Parallelism(), dtype))
    if checkpoint is None:
        load_hf_weights([model], hf)
    else:
        load_model([model], checkpoint)
    decoder: Any = model.decoder
    places = _places(model.embedding, list(decoder.layers), decoder.final_layernorm)
    hidden = _watch(places, lambda output: output[:, 0])
    logits = _forward(model.eval(), token_ids)
    return Outputs(logits[:, : hf.shape.vocab_size].float().cpu(), hidden)


def _forward(model: GPTModel, token_ids: list[int]) -> torch.Tensor:
    device = current_device()
    bounds = torch.tensor([0, len(token_ids)], dtype=torch.int32, device=device)
    pack = PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=bounds,
        cu_seqlens_kv=bounds,
        max_seqlen_q=len(token_ids),
        max_seqlen_kv=len(token_ids),
    )
    positions = torch.arange(len(token_ids), device=device)[None]
    tokens = torch.tensor([token_ids], device=device)
    return model(tokens, positions, None, packed_seq_params=pack)[0]


def _places(embedding: Any, layers: list[Any], norm: Any) -> dict[str, torch.nn.Module]:
    return {"embedding": embedding} | {f"layer {i}": layer for i, layer in enumerate(layers)} | {
        "final norm": norm
    }  # fmt: skip


def _watch(
    places: dict[str, torch.nn.Module], one_sequence: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The outputs `[s, hidden]` of the modules, float32 on the CPU: the dictionary fills as they run."""
    found: dict[str, torch.Tensor] = {}

    def keep(place: str, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        found[place] = one_sequence(states).float().cpu()

    for place, module in places.items():
        module.register_forward_hook(lambda _module, _args, output, place=place: keep(place, output))
    return found
