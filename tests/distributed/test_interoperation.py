"""Checkpoints to and from plain Megatron-Core: its GPTModel, its layers, its dist_checkpointing.

Of this project the plain side uses only what makes Megatron-Core run without CUDA.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer import TransformerConfig
from transformers import AutoModelForCausalLM

from megatron_probsft.checkpoint.convert import hf_to_megatron, megatron_to_hf
from megatron_probsft.runtime import distributed
from tests.distributed.test_training_parity import _label_probabilities, _samples
from tests.support.ranks import run_ranks
from tests.support.sizes import rows
from tests.support.tiny_families import save_tiny_family
from tests.support.training_runs import config_for, records, train, write_pairs

PADDED = 384  # Megatron-LM's --make-vocab-size-divisible-by 128
CASES = [("tiny_llama", (1, 1)), ("tiny_llama", (2, 2)), ("tiny_qwen2", (1, 1)), ("tiny_qwen2", (2, 2)),
         ("tiny_mixtral", (1, 1)), ("tiny_mixtral", (1, 2))]  # fmt: skip
MODELS = rows(CASES, fast=[], rare=[("tiny_qwen2", (1, 1)), ("tiny_mixtral", (1, 1))])
TP_2: dict[str, Any] = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
TOKENS = torch.randint(0, 331, (48,), generator=torch.Generator().manual_seed(4)).tolist()


def _plain_model(
    hf_config: dict[str, Any], tp: int, pp: int, *, norms_as_transformer_engine: bool = False
) -> GPTModel:
    """norms_as_transformer_engine: a mixture's norm has the name that it has on GPUs."""
    distributed.initialize(tp, pp)
    torch.manual_seed(7 + parallel_state.get_pipeline_model_parallel_rank())
    config = TransformerConfig(
        num_layers=hf_config["num_hidden_layers"],
        hidden_size=hf_config["hidden_size"],
        ffn_hidden_size=hf_config["intermediate_size"],
        num_attention_heads=hf_config["num_attention_heads"],
        num_query_groups=hf_config["num_key_value_heads"],
        layernorm_epsilon=hf_config["rms_norm_eps"],
        normalization="RMSNorm",
        add_bias_linear=False,
        add_qkv_bias=hf_config["model_type"] == "qwen2",
        gated_linear_unit=True,
        activation_func=F.silu,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method_std=0.15,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        pipeline_dtype=torch.float32,
        use_cpu_initialization=True,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        batch_p2p_comm=False,
        **_experts(hf_config),
    )
    layer = get_gpt_layer_local_spec(num_experts=config.num_moe_experts, normalization="RMSNorm")
    if norms_as_transformer_engine:
        del layer.submodules.sharded_state_dict_keys_map["pre_mlp_layernorm."]  # type: ignore[union-attr]
    return GPTModel(
        config=config,
        transformer_layer_spec=layer,
        vocab_size=PADDED,
        max_sequence_length=1024,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=hf_config["tie_word_embeddings"],
        position_embedding_type="rope",
        rotary_base=int(hf_config["rope_parameters"]["rope_theta"]),
    )


def _experts(hf_config: dict[str, Any]) -> dict[str, Any]:
    if hf_config["model_type"] != "mixtral":
        return {}
    return {
        "num_moe_experts": hf_config["num_local_experts"],
        "moe_router_topk": hf_config["num_experts_per_tok"],
        "moe_router_load_balancing_type": "none",
        "moe_token_dispatcher_type": "alltoall",
    }


def _plain_logits(model: GPTModel) -> torch.Tensor:
    """This rank's shard `[s, V / tp]` on the last stage."""

    def forward_step(_iterator: Any, model: GPTModel) -> Any:
        output = model(torch.tensor([TOKENS]), torch.arange(len(TOKENS))[None], None)
        return output, lambda output, non_loss_data=False: output

    with torch.no_grad():
        outputs = get_forward_backward_func()(
            forward_step_func=forward_step, data_iterator=iter([None]), model=[model.eval()],
            num_microbatches=1, seq_length=len(TOKENS), micro_batch_size=1, forward_only=True,
            collect_non_loss_data=True,
        )  # fmt: skip
    return outputs[0][0] if parallel_state.is_pipeline_last_stage() else torch.empty(0, 0)


def _plain_saves(hf_config: dict[str, Any], tp: int, pp: int, folder: Path) -> torch.Tensor:
    model = _plain_model(hf_config, tp, pp)
    dist_checkpointing.save(
        {"model": model.sharded_state_dict(), "iteration": 7}, str(folder), async_strategy="mcore"
    )
    return _plain_logits(model)


def _plain_loads(hf_config: dict[str, Any], tp: int, pp: int, folder: Path) -> torch.Tensor:
    mixture = hf_config["model_type"] == "mixtral"
    model = _plain_model(hf_config, tp, pp, norms_as_transformer_engine=mixture)
    state: Any = dist_checkpointing.load({"model": model.sharded_state_dict()}, str(folder))
    model.load_state_dict(state["model"])
    return _plain_logits(model)


@pytest.fixture(scope="module")
def tiny_mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_family(tmp_path_factory.mktemp("tiny") / "mixtral", "Mixtral", num_hidden_layers=2)


def _joined(shards: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([shard for shard in shards if shard.numel()], dim=1)[:, :331]


def _transformers_logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0]


def _to_hf(run: Path, target: Path) -> None:
    distributed.initialize()
    megatron_to_hf(run, target)


def _to_megatron(source: Path, run: Path) -> Path:
    distributed.initialize()
    return hf_to_megatron(source, run).folder


@pytest.mark.parametrize(("model", "layout"), MODELS, ids=str)
def test_what_plain_megatron_core_writes_is_read(
    model: str, layout: tuple[int, int], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """By the conversion, and by the trainer on another layout."""
    source = request.getfixturevalue(model)
    hf_config = json.loads((source / "config.json").read_text())
    checkpoint = tmp_path / "plain" / "iter_0000007"
    checkpoint.mkdir(parents=True)
    tp, pp = layout
    theirs = _joined(run_ranks(tp * pp, _plain_saves, hf_config, tp, pp, checkpoint))
    (checkpoint / "hf").mkdir()
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            shutil.copyfile(file, checkpoint / "hf" / file.name)

    run_ranks(1, _to_hf, tmp_path / "plain", tmp_path / "hf")
    torch.testing.assert_close(_transformers_logits(tmp_path / "hf"), theirs, rtol=0, atol=1e-4)

    data = write_pairs(tmp_path / "train.jsonl", 12)
    settings = {"load": str(tmp_path / "plain"), "finetune": True, "valid_data": [str(data)]}
    train(2, config_for(tmp_path / "run", None, data, **TP_2, **settings))
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    with torch.no_grad():
        samples = _samples(tmp_path / "hf", data)
        p = torch.cat([_label_probabilities(reference, *sample) for sample in samples])
    first = records(tmp_path / "run", "validation")[0]
    assert first["nll"] == pytest.approx(-p.log().mean().item(), rel=1e-5)


@pytest.mark.parametrize(("model", "layout"), MODELS, ids=str)
def test_plain_megatron_core_reads_what_is_written(
    model: str, layout: tuple[int, int], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """By the conversion, and by a training run on another layout; into a vocabulary of other padding."""
    source = request.getfixturevalue(model)
    hf_config = json.loads((source / "config.json").read_text())
    (converted,) = run_ranks(1, _to_megatron, source, tmp_path / "converted")
    data = write_pairs(tmp_path / "train.jsonl", 12)
    trained = {**TP_2, "save_hf": str(tmp_path / "trained hf"), "save_optim": True}
    train(2, config_for(tmp_path / "trained", source, data, **trained))
    tp, pp = layout
    for checkpoint, hf in (
        (converted, source),
        (tmp_path / "trained" / "iter_0000003", tmp_path / "trained hf"),
    ):
        ours = _joined(run_ranks(tp * pp, _plain_loads, hf_config, tp, pp, checkpoint))
        torch.testing.assert_close(ours, _transformers_logits(hf), rtol=0, atol=1e-4)
