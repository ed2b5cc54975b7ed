"""Fine-tune a language model on Megatron-Core with any f(p) as objective.

torchrun --nproc-per-node 3 -m megatron_probsft.train --tensor-model-parallel-size 3 --bf16 \\
    --hf-model MODEL --data train.jsonl --valid-data valid.jsonl --objective GeneralFamily-8 \\
    --train-epochs 1 --global-batch-size 256 --seq-length 2048 --lr 5e-5 --save runs/first
"""

from megatron_probsft.runtime.errors import one_line_errors
from megatron_probsft.runtime.processes.environment import check_environment
from megatron_probsft.runtime.processes.launch import launched_rank
from megatron_probsft.training.config.arguments import parse_arguments
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.start.checks import check_start
from megatron_probsft.training.start.problems import Problems


def main() -> None:
    with one_line_errors():
        config = parse_arguments()
        if config.preview.dry_run:  # which lists all problems, and is one process's work
            if launched_rank() == 0:
                _dry_run(config)
            return
        check_environment()
        check_start(config, Problems())
        _run(config)


# Torch and Megatron-Core are imported late: it takes many seconds, and mistakes are told without them.


def _dry_run(config: TrainConfig) -> None:
    from megatron_probsft.runtime.imports import fast_imports  # noqa: F401  # isort: skip

    from megatron_probsft.training.start.dry_run import dry_run

    dry_run(config)


def _run(config: TrainConfig) -> None:
    from megatron_probsft.runtime.imports import fast_imports  # noqa: F401  # isort: skip

    from megatron_probsft.runtime import distributed
    from megatron_probsft.training.loop import run

    run(config)
    distributed.shutdown()


if __name__ == "__main__":
    main()
