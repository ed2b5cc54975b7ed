"""Settings that are wrong whatever model and data are, and layouts that a model does not divide into."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_probsft.models.hf_model import read_hf_model
from megatron_probsft.models.layout import Parallelism, parallelism_problems
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.training.config.arguments import parse_arguments
from megatron_probsft.training.start.checks import objective_problems
from tests.support.tiny_families import save_tiny_family


def cut_off(log_p: torch.Tensor) -> torch.Tensor:
    """A threshold that is not told."""
    return torch.where(log_p.exp() >= 0.3, -log_p, torch.zeros_like(log_p))


GIVEN = {"--hf-model": "m", "--data": "a.jsonl", "--save": "run", "--train-iters": "9"}
CASES: dict[str, str] = {
    # flags ("--flag=" leaves out one that is given) → the message
    "--save=": "--save is missing: the folder for this run's checkpoints and metrics",
    "--data=": "--data is missing: .jsonl or .parquet files to train on",
    "--hf-model=": "give --hf-model (start from a Hugging Face model) or --load (resume a run)",
    "--train-iters=": "give one of --train-iters and --train-epochs",
    "--train-epochs 1": "give one of --train-iters and --train-epochs",
    "--save-hf-at-each-save": "--save-hf-at-each-save needs --save-hf, the folder for them",
    "--save-retain-interval 5 --save-interval 2": (
        "--save-retain-interval 5 must be a multiple of --save-interval, 2"
    ),
    "--finetune": "--finetune belongs to --load",
    "--ckpt-step 0": "--ckpt-step belongs to --load",
    "--seed -1": "--seed must be at least 0 and below 2^63, got -1",
    "--seed 99999999999999999999": "--seed must be at least 0 and below 2^63, got",
    "--train-epochs 1 --train-iters 99999999999": "give one of",
    "--global-batch-size 99999999999": "--global-batch-size must be below 2^31, got 99999999999",
    "--lr inf": "--lr must be a finite number, got inf",
    "--lr nan": "--lr must be more than 0, got nan",
    "--weight-decay inf": "--weight-decay must be a finite number, got inf",
    "--verbose": "--verbose belongs to --dry-run",
    "--min-lr 1": "--min-lr 1.0 is above --lr 5e-05",
    "--clip-grad -1": "--clip-grad must not be negative, got -1.0",
    "--max-skipped-steps 0": "--max-skipped-steps must be more than 0, got 0",
    "--spike-factor 0": "--spike-factor must be more than 0, got 0.0",
    "--exit-duration-in-mins 0": "--exit-duration-in-mins must be more than 0, got 0.0",
    "--save-interval 0": "--save-interval must be more than 0, got 0",
    "--check-weight-hash-across-dp-replicas-interval 0": (
        "--check-weight-hash-across-dp-replicas-interval must be more than 0, got 0"
    ),
    "--adam-beta2 1": "--adam-beta2 must be in 0 ≤ β < 1, got 1.0",
    "--lr-warmup-fraction 1": "--lr-warmup-fraction must be in 0 ≤ x < 1, got 1.0",
    "--lr-warmup-fraction 0.1 --lr-warmup-iters 2": "give one of --lr-warmup-fraction and --lr-warmup-iters",
    "--lr-decay-style WSD": "--lr-wsd-decay-iters belongs to --lr-decay-style WSD, and WSD needs it",
    "--overlap-param-gather": (
        "--overlap-param-gather needs --use-distributed-optimizer and --overlap-grad-reduce"
    ),
    "--recompute-method block": (
        "--recompute-granularity full needs --recompute-method and --recompute-num-layers, and only it does"
    ),
    "--config {0}/no.yaml": "--config {0}/no.yaml: no such file",
    "--config {0}": "--config {0} is a folder: a file is wanted",
    "--config {0}/bad.yaml/x": "--config {0}/bad.yaml/x cannot be read: Not a directory",
    "--config {0}/binary.yaml": "--config {0}/binary.yaml is not text in UTF-8",
    "--config {0}/empty.yaml": "--config {0}/empty.yaml must hold keys and values, e.g. `lr: 5.0e-5`",
    "--config {0}/number.yaml": "--config {0}/number.yaml must hold keys and values, got int",
    "--config {0}/bad.yaml": "--config {0}/bad.yaml is not YAML: ",
    "--config {0}/key.yaml": "--config {0}/key.yaml: unknown key 'leerning_iters'; ",
    "--config {0}/list.yaml": "--config {0}/list.yaml: data_weights should hold floats, got ['much']",
    "--config {0}/choice.yaml": (
        "--config {0}/choice.yaml: truncation must be one of error, drop, left, right, got 'cut'"
    ),
}  # fmt: skip
YAML = {
    "empty": "", "number": "3", "bad": "a: [", "key": "leerning_iters: 1", "list": "data_weights: [much]",
    "choice": "truncation: cut",
}  # fmt: skip


@pytest.mark.parametrize("flags", CASES)
def test_every_message(flags: str, tmp_path: Path) -> None:
    for name, text in YAML.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "binary.yaml").write_bytes(b"lr: \xff\xfe")
    left_out = flags.removesuffix("=") if flags.endswith("=") else None
    argv = [part for flag, value in GIVEN.items() if flag != left_out for part in (flag, value)]
    more = [] if left_out else flags.format(tmp_path).split()
    with pytest.raises(UserError) as caught:
        parse_arguments([*argv, *more])
    assert str(caught.value).startswith(CASES[flags].format(tmp_path))
    assert "\n" not in str(caught.value)


def test_an_objective_that_does_not_say_what_it_keeps() -> None:
    flags = ["--objective", f"{__name__}:cut_off", "--loss-denominator", "microbatch-mean"]
    given = [part for pair in GIVEN.items() for part in pair]
    [problem] = objective_problems(parse_arguments([*given, *flags]).objective)
    assert problem.startswith(
        "--loss-denominator microbatch-mean counts the tokens that the objective keeps, but "
        f"{__name__}:cut_off does not say that its gradient is cut off at p = 0.29"
    )
    assert [*objective_problems(parse_arguments([*given, *flags[:2]]).objective)] == []


def test_what_is_given_is_right() -> None:
    parse_arguments([part for flag in GIVEN.items() for part in flag])


LAYOUTS: list[tuple[Parallelism, int, list[str]]] = [
    (Parallelism(tensor_model_parallel_size=2, sequence_parallel=True), 4, []),
    (Parallelism(sequence_parallel=True), 1, ["--sequence-parallel needs --tensor-model-parallel-size of 2"]),
    (
        Parallelism(tensor_model_parallel_size=4, pipeline_model_parallel_size=3),
        8,
        ["8 processes do not divide into", "6 attention heads do not divide", "4 layers do not divide"],
    ),
    (
        Parallelism(pipeline_model_parallel_size=2, num_virtual_stages_per_pipeline_rank=1),
        2,
        ["--num-virtual-stages-per-pipeline-rank 1 must be 2 or more"],
    ),
    (Parallelism(expert_model_parallel_size=2), 2, ["1 expert(s) do not divide by --expert-model"]),
    (Parallelism(tensor_model_parallel_size=0), 1, []),  # told by the settings' own check
]


@pytest.mark.parametrize(("layout", "processes", "expected"), LAYOUTS)
def test_layouts(layout: Parallelism, processes: int, expected: list[str], tiny_llama: Path) -> None:
    found = list(parallelism_problems(read_hf_model(tiny_llama).shape, layout, processes))
    assert [any(text in line for line in found) for text in expected] == [True] * len(found)


def test_layouts_of_a_mixture(tmp_path: Path) -> None:
    shape = read_hf_model(save_tiny_family(tmp_path, "Mixtral", num_hidden_layers=2)).shape
    layout = Parallelism(tensor_model_parallel_size=2, expert_model_parallel_size=2)
    assert list(parallelism_problems(shape, layout, 2)) == [
        "the 2 processes of a pipeline stage do not divide into tensor × expert parallel groups of 2 × 2",
        "mixture-of-experts models need --sequence-parallel with tensor parallelism",
    ]
