"""Settings in groups and their flat view; what stands on a field; the one list of a run's problems."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_probsft.runtime.errors import UserError
from megatron_probsft.training.config.arguments import parse_arguments
from megatron_probsft.training.config.config import TrainConfig, settings
from megatron_probsft.training.config.flag import limit_problems
from megatron_probsft.training.config.rules import settings_problems
from megatron_probsft.training.start.compare_runs import compare_runs
from megatron_probsft.training.start.problems import Problems

BEFORE = """
hf_model load ckpt_step allow_changed finetune save save_hf save_hf_at_each_save data data_weights valid_data
template template_date show_samples prompt_key response_key messages_key weight_key truncation data_cache_path
num_workers objective loss_denominator loss_path loss_chunk_tokens loss_kernels tensor_model_parallel_size
pipeline_model_parallel_size num_virtual_stages_per_pipeline_rank context_parallel_size
expert_model_parallel_size decoder_first_pipeline_num_layers decoder_last_pipeline_num_layers
sequence_parallel use_distributed_optimizer overlap_grad_reduce overlap_param_gather recompute_granularity
recompute_method recompute_num_layers seq_length global_batch_size micro_batch_size packing fixed_pack_length
train_iters train_epochs bf16 lr min_lr lr_decay_style lr_wsd_decay_style lr_wsd_decay_iters
lr_warmup_fraction lr_warmup_iters weight_decay adam_beta1 adam_beta2 adam_eps clip_grad dry_run verbose
eval_interval save_interval save_retain_interval most_recent_k async_save save_optim exit_interval
exit_duration_in_mins max_skipped_steps spike_factor check_weight_hash_across_dp_replicas_interval
probe_samples log_interval log_entropy wandb_project wandb_exp_name wandb_entity wandb_save_dir seed
"""
"""The keys of a train_config.yaml from before there were groups."""
RESUME = {
    "fixed": "bf16",
    "same": "seed data_weights global_batch_size objective loss_denominator train_iters train_epochs lr "
    "min_lr lr_decay_style lr_wsd_decay_style lr_wsd_decay_iters lr_warmup_fraction lr_warmup_iters "
    "weight_decay adam_beta1 adam_beta2 adam_eps clip_grad fp8_format fp8_recipe",
}


def test_a_run_folder_from_before_there_were_groups_is_read(tmp_path: Path) -> None:
    given: dict[str, Any] = {"hf_model": "m", "data": ["a.jsonl"], "save": "run", "train_iters": 3, "lr": 0.5}
    flat = TrainConfig().flat() | given
    assert {*BEFORE.split()} <= settings().keys()
    file = tmp_path / "train_config.yaml"
    file.write_text(yaml.safe_dump({name: flat[name] for name in BEFORE.split()}, sort_keys=False))
    assert parse_arguments(["--config", str(file)]) == TrainConfig.of(**given)


def test_flat_and_grouped_are_the_same_settings() -> None:
    config = TrainConfig.of(lr=0.5, data=["a"], tensor_model_parallel_size=2)
    assert (config.optimizer.lr, config.data.data) == (0.5, ["a"])
    assert config.layout.tensor_model_parallel_size == config.value("tensor_model_parallel_size") == 2
    assert TrainConfig.of(**config.flat()) == config
    assert config.replace(lr=5e-5).replace(data=[], tensor_model_parallel_size=1) == TrainConfig()
    with pytest.raises(TypeError, match="no setting 'learning_rate'"):
        TrainConfig.of(learning_rate=1.0)


@pytest.mark.parametrize("kind", RESUME)
def test_what_a_resumed_run_must_share_stands_on_the_fields(kind: str, tmp_path: Path) -> None:
    names = [name for name, setting in settings().items() if setting.flag.resume == kind]
    assert {*names} == {*RESUME[kind].split()}
    config = TrainConfig.of(
        load="run", save="run", allow_changed=["lr"], bf16=False, use_distributed_optimizer=False
    )
    for name in names:
        (tmp_path / "train_config.yaml").write_text(yaml.safe_dump(config.flat() | {name: "other"}))
        changes, problems = compare_runs(tmp_path, config)
        flag = name.replace("_", "-")
        if name == "lr":
            assert (changes, problems) == ([f"--lr changed from other to {config.optimizer.lr}"], [])
            continue
        advice = f"--allow-changed {flag}, " if kind == "same" else ""
        assert problems == [
            f"--{flag} was other in {tmp_path} and is now {config.value(name)}: give the same, {advice}or "
            "--finetune to start anew from its weights"
        ]


@pytest.mark.parametrize(
    ("value", "limits", "message"),
    [
        (0, {"above": 0}, "--top-k must be more than 0, got 0"),
        (-1, {"at_least": 0}, "--top-k must not be negative, got -1"),
        (1, {"at_least": 2}, "--top-k must be at least 2, got 1"),
        (2**31, {"at_least": 2}, "--top-k must be below 2^31, got 2147483648"),
        (float("inf"), {"above": 0, "finite": True}, "--top-k must be a finite number, got inf"),
        (1.0, {"at_least": 0, "below": 1, "symbol": "β"}, "--top-k must be in 0 ≤ β < 1, got 1.0"),
        (-1, {"at_least": 0, "below": 2**63}, "--top-k must be at least 0 and below 2^63, got -1"),
    ],
)
def test_limits(value: float, limits: Any, message: str) -> None:
    assert [*limit_problems("top_k", value, limits)] == [message]
    assert [*limit_problems("top_k", None, limits)] == []
    assert [*limit_problems("top_k", True, limits)] == []


def test_every_problem_of_the_settings_is_found() -> None:
    """Also where one makes another: retain divided by an interval of 0."""
    config = TrainConfig.of(
        data=["a"], hf_model="m", save="run", lr=-1.0, save_interval=0, save_retain_interval=5,
        wandb_entity="team", train_iters=1, train_epochs=1.0,
    )  # fmt: skip
    assert [*settings_problems(config)] == [
        "give one of --train-iters and --train-epochs",
        "--lr must be more than 0, got -1.0",
        "--min-lr 0.0 is above --lr -1.0",
        "--save-interval must be more than 0, got 0",
        "--save-retain-interval 5 must be a multiple of --save-interval, 0",
        "--wandb-entity belongs to --wandb-project",
    ]


def _fail() -> int:
    raise UserError("second")


def test_problems_stop_a_run_at_the_first_and_a_dry_run_at_none() -> None:
    first = Problems()
    assert first.attempt(lambda: 3) == 3
    with pytest.raises(UserError, match="second"):
        first.attempt(_fail)
    every = Problems(collecting=True)
    every.raise_all()
    every.add(["first"])
    assert every.attempt(_fail) is None
    every.add(["first", "third"])
    assert every
    with pytest.raises(UserError, match=r"^3 problem\(s\):\n  1. first\n  2. second\n  3. third$"):
        every.raise_all()
