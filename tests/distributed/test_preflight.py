"""--dry-run: its numbers are right, and it lists every problem at once."""

from __future__ import annotations

import json
import os
import re
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from megatron.core import parallel_state
from safetensors.torch import load_file

from megatron_probsft import train
from megatron_probsft.models.hf_model import read_hf_model
from megatron_probsft.runtime import distributed
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.start.memory_estimate import parameter_count, stage_memory
from megatron_probsft.training.state import build_gpt
from tests.support.ranks import run_ranks
from tests.support.tiny_families import save_tiny_family
from tests.support.training_runs import config_for, write_pairs
from tests.support.training_runs import train as train_run

LAYOUTS: list[dict[str, Any]] = [
    {"tensor_model_parallel_size": 2},
    {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2},
    {"pipeline_model_parallel_size": 3, "decoder_first_pipeline_num_layers": 2},
    {"pipeline_model_parallel_size": 2, "num_virtual_stages_per_pipeline_rank": 2},
]


def _built(folder: Path, layout: dict[str, Any]) -> tuple[int, int]:
    """(pipeline stage, parameters on this rank)."""
    config = TrainConfig.of(**layout)
    distributed.initialize(
        config.layout.tensor_model_parallel_size,
        config.layout.pipeline_model_parallel_size,
        expert_model_parallel_size=config.layout.expert_model_parallel_size,
        virtual_stages=config.layout.num_virtual_stages_per_pipeline_rank,
    )
    model = build_gpt(read_hf_model(folder), config.layout, config.precision, packing=True)
    return parallel_state.get_pipeline_model_parallel_rank(), sum(
        p.numel() for chunk in model for p in chunk.parameters()
    )


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("model", ["tiny_llama", "tiny_qwen2"])
def test_parameters_of_every_stage(
    model: str, layout: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(model)
    hf = read_hf_model(folder)
    config = TrainConfig.of(**layout)
    stages = stage_memory(config, hf.family, hf.shape, dp_size=1, micro_batches=4, pack_length=64)
    ranks = config.layout.tensor_model_parallel_size * config.layout.pipeline_model_parallel_size
    for stage, parameters in run_ranks(ranks, _built, folder, layout):
        assert stages[stage].parameters == parameters
    assert stages[0].activations > stages[-1].activations or len(stages) == 1  # more in flight


@pytest.mark.parametrize("case", ["Mixtral", "Qwen3-MoE"])
def test_parameters_of_experts(case: str, tmp_path: Path) -> None:
    folder = save_tiny_family(tmp_path / "hf", case, num_hidden_layers=2)
    hf = read_hf_model(folder)
    layout: dict[str, Any] = {
        "tensor_model_parallel_size": 2, "expert_model_parallel_size": 2, "sequence_parallel": True,
    }  # fmt: skip
    (stage,) = stage_memory(
        TrainConfig.of(**layout), hf.family, hf.shape, dp_size=2, micro_batches=1, pack_length=64
    )
    assert {parameters for _, parameters in run_ranks(4, _built, folder, layout)} == {stage.parameters}
    whole = sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
    assert parameter_count(hf.family, hf.shape) == whole


def test_an_interleaved_pipeline_keeps_more_activations(tiny_llama: Path) -> None:
    """(p − 1) / (p v) more on the first stage (arXiv 2104.04473, 2205.05198)."""
    hf = read_hf_model(tiny_llama)

    def first_stage(virtual: int | None) -> int:
        config = TrainConfig.of(pipeline_model_parallel_size=2, num_virtual_stages_per_pipeline_rank=virtual)
        stages = stage_memory(config, hf.family, hf.shape, dp_size=1, micro_batches=8, pack_length=64)
        return stages[0].activations

    assert first_stage(2) / first_stage(None) == 1 + 1 / (2 * 2)


def _by_megatron(**settings: Any) -> float:
    """Bytes of weights, gradients and optimizer on the fullest rank; imported in a process of its own."""
    from megatron.training.theoretical_memory_usage import compute_weight_and_optimizer_memory

    unused = ("num_experts", "moe_shared_expert_intermediate_size", "mtp_num_layers", "moe_latent_size")
    return compute_weight_and_optimizer_memory(
        SimpleNamespace(
            **dict.fromkeys(unused), multi_latent_attention=False, group_query_attention=True, swiglu=True,
            normalization="RMSNorm", add_bias_linear=False, expert_model_parallel_size=1, **settings,
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("tp", "pp", "dp", "distributed_optimizer"),
    [(1, 1, 1, False), (3, 1, 2, True), (3, 2, 1, False), (1, 2, 4, True)],
)
def test_weights_and_optimizer_are_megatrons_estimate(
    tp: int, pp: int, dp: int, distributed_optimizer: bool, smollm2: Path
) -> None:
    """Of the most loaded rank; Megatron-LM spreads the last norm over the stages, we do not."""
    hf = read_hf_model(smollm2)
    shape = hf.shape
    config = TrainConfig.of(
        tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, bf16=True,
        use_distributed_optimizer=distributed_optimizer,
    )  # fmt: skip
    stages = stage_memory(config, hf.family, shape, dp, micro_batches=4, pack_length=64)
    (expected,) = run_ranks(
        1, partial(
            _by_megatron, hidden_size=shape.hidden_size, num_layers=shape.num_layers,
            num_attention_heads=shape.num_attention_heads, num_query_groups=shape.num_query_groups,
            kv_channels=shape.head_dim, ffn_hidden_size=shape.ffn_hidden_size,
            padded_vocab_size=shape.vocab_size, untie_embeddings_and_output_weights=False,
            tensor_model_parallel_size=tp, expert_tensor_parallel_size=tp, pipeline_model_parallel_size=pp,
            data_parallel_size=dp, world_size=tp * pp * dp, use_distributed_optimizer=distributed_optimizer,
        ),
    )  # fmt: skip
    ours = max(stage.weights + stage.gradients + stage.optimizer for stage in stages)
    assert ours == pytest.approx(expected, rel=1e-4)


def test_parameters_of_smollm2(smollm2: Path) -> None:
    hf = read_hf_model(smollm2)
    assert parameter_count(hf.family, hf.shape) == 134_515_008


def _dry_run(folder: Path, *flags: str) -> tuple[int, str]:
    """(exit status, what it printed) of a run in a forked process."""
    process = os.fork()
    if process == 0:
        torch.set_num_threads(1)  # the parent's thread pool does not live on in a fork
        sys.stdout = sys.stderr = (folder / "output").open("w")
        sys.argv = ["train", "--dry-run", *flags]
        status = 70
        try:
            train.main()
            status = 0
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        finally:
            sys.stdout.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return status, (folder / "output").read_text()


def test_dry_run_of_a_layout_that_this_machine_has_not(tiny_llama: Path, tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "train.jsonl", 20)
    status, output = _dry_run(
        tmp_path, "--hf-model", str(tiny_llama), "--data", str(data), "--save", str(tmp_path / "run"),
        "--train-epochs", "2", "--global-batch-size", "8", "--seq-length", "128",
        "--tensor-model-parallel-size", "2", "--context-parallel-size", "2", "--objective", "p",
    )  # fmt: skip
    assert status == 0, output
    assert "5 steps of 8 samples, 2.00 epochs" in output
    assert "on 4 process(es): TP 2 × PP 1 × CP 2 × DP 1" in output
    assert "objective: p" in output
    assert "trained turns end with <|im_end|> (100.0%)" in output
    assert not (tmp_path / "run").exists()


def test_dry_run_without_a_run_folder_leaves_nothing(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "a" / "b"  # the cache of a run would be beside its folder
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    data = write_pairs(tmp_path / "train.jsonl", 20)
    before = {*tmp_path.rglob("*"), tmp_path / "output"}
    flags = ["--hf-model", str(tiny_llama), "--data", str(data), "--train-iters", "2", "--seq-length", "128"]
    for _ in range(2):
        status, output = _dry_run(tmp_path, *flags)
        assert status == 0, output
        assert "tokenized 20 samples" in output
        assert {*tmp_path.rglob("*")} == before
    status, output = _dry_run(tmp_path, *flags, "--data-cache-path", str(tmp_path / "cache"))
    assert status == 0, output
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_settings_that_are_not_the_default_or_all(tiny_llama: Path, tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "train.jsonl", 20)
    flags = [
        "--hf-model", str(tiny_llama), "--data", str(data), "--train-epochs", "2", "--seq-length", "128",
        "--global-batch-size", "8", "--no-packing", "--objective", "original",  # which is the default
    ]  # fmt: skip

    def shown(*more: str) -> dict[str, Any]:
        status, output = _dry_run(tmp_path, *flags, *more)
        assert status == 0, output
        return yaml.safe_load(output.partition("settings")[2].partition(":\n\n")[2])

    assert shown() == {
        "hf_model": str(tiny_llama), "data": [str(data)], "train_epochs": 2.0, "seq_length": 128,
        "global_batch_size": 8, "packing": False,
    }  # fmt: skip
    everything = shown("--verbose")
    assert everything.keys() == TrainConfig().flat().keys()
    assert everything["objective"] == "original"
    assert everything["lr"] == 5e-5


def test_the_least_of_settings_is_no_riddle(tmp_path: Path) -> None:
    status, output = _dry_run(tmp_path)
    assert status == 2
    assert "3 problem(s)" in output
    for text in ("--data is missing", "give --hf-model", "give one of --train-iters and --train-epochs"):
        assert text in output


def test_truncations_are_shown_also_of_data_from_the_cache(tiny_llama: Path, tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "train.jsonl", 20)
    flags = [
        "--hf-model", str(tiny_llama), "--data", str(data), "--save", str(tmp_path / "run"),
        "--train-epochs", "1", "--global-batch-size", "4", "--seq-length", "24", "--truncation", "right",
    ]  # fmt: skip
    for output in [_dry_run(tmp_path, *flags)[1] for _ in range(2)]:
        (counts,) = re.findall(r"longer than --seq-length 24: (\d+) cut, (\d+) left out", output)
        row = next(line for line in output.splitlines() if "training" in line)
        assert tuple(row.split("│")[-3:-1][i].strip() for i in range(2)) == counts
        assert int(counts[0]) > 0
    assert "from before" in output


def test_all_problems_are_listed(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "hf").mkdir()
    status, output = _dry_run(
        tmp_path, "--hf-model", str(tiny_llama), "--data", "nowhere.jsonl", "--save", str(tmp_path / "run"),
        "--save-hf", str(tmp_path / "hf"), "--train-iters", "-1", "--objective", "OnlyTopP-2",
        "--tensor-model-parallel-size", "4", "--pipeline-model-parallel-size", "3",
    )  # fmt: skip
    assert status == 2
    for text in (
        "--train-iters must", "out of range", "run exists", "hf exists", "6 attention heads do not divide",
        "4 layers do not divide", "--seq-length 2048 is more", "nowhere.jsonl",
    ):  # fmt: skip
        assert text in output
    assert "8 problem(s)" in output


@pytest.mark.parametrize(
    ("flags", "row", "problems"),
    [
        (
            ["--lr", "-1", "--train-iters", "2", "--lr-warmup-iters", "3"],
            None,
            [
                "--lr must be more than 0, got -1.0",
                "--min-lr 0.0 is above --lr -1.0",
                "--lr-warmup-iters 3 leaves nothing of the run's 2 steps",
            ],
        ),
        # No steps can be counted with these.
        (
            ["--global-batch-size", "0", "--train-epochs", "1"],
            None,
            ["--global-batch-size must be more than 0"],
        ),
        (["--train-iters", "2"], '{"prompt": "a"}', ["train.jsonl:21: 'response' is missing"]),
    ],
)
def test_problems_of_every_check_are_listed_once(
    flags: list[str], row: str | None, problems: list[str], tiny_llama: Path, tmp_path: Path
) -> None:
    data = write_pairs(tmp_path / "train.jsonl", 20)
    if row:
        data.write_text(data.read_text() + row + "\n")
    given = ["--hf-model", str(tiny_llama), "--data", str(data), "--seq-length", "128"]
    status, output = _dry_run(tmp_path, *given, *flags)
    assert status == 2
    assert f"{len(problems)} problem(s):" in output
    for number, text in enumerate(problems, 1):
        assert re.search(rf"^  {number}\. .*{re.escape(text)}", output, re.MULTILINE), output


def test_problems_that_only_the_data_tell(tiny_llama: Path, tmp_path: Path) -> None:
    """Steps are known once the data are, and whether a checkpoint was trained on the same."""
    data, other = write_pairs(tmp_path / "train.jsonl", 20), write_pairs(tmp_path / "other.jsonl", 20, seed=1)
    run = tmp_path / "run"
    train_run(1, config_for(run, tiny_llama, data, save_optim=True, train_epochs=1.0, lr_warmup_iters=0))
    status, output = _dry_run(
        tmp_path, "--load", str(run), "--save", str(run), "--data", str(other), "--train-epochs", "1",
        "--global-batch-size", "8", "--seq-length", "128", "--lr-warmup-iters", "3", "--lr", "0.01",
        "--min-lr", "0.001", "--seed", "5", "--allow-changed", "lr-warmup-iters",
    )  # fmt: skip
    assert status == 2
    assert "was trained on other data" in output
    assert "--lr-warmup-iters 3 leaves nothing of the run's 3 steps" in output
    assert "2 problem(s)" in output


def test_problems_of_data_are_listed_beside_those_of_batch_and_layout(
    tiny_llama: Path, tmp_path: Path
) -> None:
    data, weighted = write_pairs(tmp_path / "train.jsonl", 20), tmp_path / "valid.jsonl"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}] * 2
    weighted.write_text(json.dumps({"messages": [*turns[:3], {"role": "assistant", "content": "c"}]}) + "\n")
    status, output = _dry_run(
        tmp_path, "--hf-model", str(tiny_llama), "--data", str(data), "--valid-data", str(weighted),
        "--train-iters", "2", "--lr-warmup-iters", "3", "--seq-length", "128", "--overlap-param-gather",
        "--loss-denominator", "microbatch-mean",
    )  # fmt: skip
    assert status == 2
    for text in (
        "--overlap-param-gather needs", "--loss-denominator microbatch-mean does not go with weighted data",
        "--lr-warmup-iters 3 leaves nothing",
    ):  # fmt: skip
        assert text in output
    assert "3 problem(s)" in output


def test_a_run_that_is_resumed_with_larger_batches(tiny_llama: Path, tmp_path: Path) -> None:
    """Fewer samples were seen than so many steps of today's size would see."""
    data, run = write_pairs(tmp_path / "train.jsonl", 20), tmp_path / "run"
    train_run(1, config_for(run, tiny_llama, data, save_optim=True, train_iters=3, global_batch_size=2))
    status, output = _dry_run(
        tmp_path, "--load", str(run), "--save", str(run), "--data", str(data), "--train-iters", "5",
        "--global-batch-size", "8", "--seq-length", "128", "--lr", "0.01", "--min-lr", "0.001", "--seed", "5",
        "--allow-changed", "global-batch-size", "train-iters", "lr-warmup-iters",
    )  # fmt: skip
    assert status == 0, output
    assert "5 steps of 8 samples" in output


def test_a_dry_run_of_a_mixture_takes_as_many_processes_as_its_experts_need(tmp_path: Path) -> None:
    folder = save_tiny_family(tmp_path / "hf", "Mixtral", num_hidden_layers=2)
    data = write_pairs(tmp_path / "train.jsonl", 20)
    status, output = _dry_run(
        tmp_path, "--hf-model", str(folder), "--data", str(data), "--save", str(tmp_path / "run"),
        "--train-iters", "1", "--global-batch-size", "8", "--seq-length", "64",
        "--tensor-model-parallel-size", "2", "--sequence-parallel", "--expert-model-parallel-size", "2",
    )  # fmt: skip
    assert status == 0, output
    assert "on 4 process(es): TP 2 × PP 1 × CP 1 × DP 2" in output
