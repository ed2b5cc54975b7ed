"""Fine-tune a language model on Megatron-Core with any f(p) as objective.

torchrun --nproc-per-node 3 -m megatron_probsft.train --tensor-model-parallel-size 3 --bf16 \\
    --hf-model MODEL --data train.jsonl --valid-data valid.jsonl --objective GeneralFamily-8 \\
    --train-epochs 1 --global-batch-size 256 --seq-length 2048 --lr 5e-5 --save runs/first
"""

from megatron_probsft.runtime import fast_imports  # noqa: F401  # isort: skip

from megatron_probsft.runtime import distributed
from megatron_probsft.runtime.errors import one_line_errors
from megatron_probsft.training.arguments import parse_arguments
from megatron_probsft.training.loop import run
from megatron_probsft.training.preflight import dry_run


def main() -> None:
    with one_line_errors():
        config = parse_arguments()
        if config.dry_run:
            dry_run(config)
            return
        run(config)
        distributed.shutdown()


if __name__ == "__main__":
    main()
