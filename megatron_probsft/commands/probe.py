"""Which objective fits these data? The probability of their label tokens under the model, before training.

probsft probe --hf-model MODEL --data math.jsonl medical.jsonl --output runs/probe
torchrun --standalone --nproc-per-node 3 -m megatron_probsft.commands.probe --tensor-model-parallel-size 3 …

Prints a table by source and writes OUTPUT/probe.json and OUTPUT/probe.png. Data, template and layout flags
are the trainer's.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_probsft.runtime.errors import UserError, one_line_errors
from megatron_probsft.runtime.folders import check_writable
from megatron_probsft.runtime.launch import launched_rank
from megatron_probsft.training.config.arguments import Parser, add_flags, check
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.start.start_checks import check_start

if TYPE_CHECKING:
    from megatron_probsft.probing.probe import Reading

_FLAGS = (
    "hf_model", "load", "ckpt_step", "data", "template", "template_date", "prompt_key", "response_key",
    "messages_key", "truncation", "data_cache_path", "num_workers", "seq_length", "global_batch_size",
    "micro_batch_size", "bf16", "tensor_model_parallel_size", "pipeline_model_parallel_size",
    "context_parallel_size", "expert_model_parallel_size", "sequence_parallel",
    "decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers", "loss_path",
    "loss_chunk_tokens", "loss_kernels",
)  # fmt: skip


def main() -> None:
    with one_line_errors():
        parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        add_flags(parser, _FLAGS)
        parser.add_argument("--output", type=Path, help="folder for probe.json and probe.png")
        parser.add_argument("--max-samples", type=int, default=2000, help="of each source (default: 2000)")
        given = vars(parser.parse_args())
        output, most = given.pop("output"), given.pop("max_samples")
        if most < 1:
            raise UserError(f"--max-samples must be more than 0, got {most}")
        if output and launched_rank() == 0:
            check_writable(output, "--output")
        with tempfile.TemporaryDirectory() as nowhere:
            config = TrainConfig(
                **({"finetune": given.get("load") is not None, "train_iters": 1} | given),
                save=str(output or Path(nowhere) / "probe"),
            )
            check(config)
            check_start(config)
            readings = run(config, most)
        from megatron_probsft.probing import report as probe_report
        from megatron_probsft.runtime import distributed

        if output and distributed.rank() == 0:
            probe_report.write(readings, output)
            print(f"wrote {output / 'probe.json'} and probe.png")
        distributed.shutdown()


def run(config: TrainConfig, most: int) -> list[Reading]:
    """Build the model at the configured layout, probe up to `most` samples of each source, print a table."""
    # Here: torch and Megatron-Core take many seconds to import, and mistakes are told without them.
    from megatron_probsft.runtime import fast_imports  # noqa: F401  # isort: skip

    from megatron_probsft.checkpoint.hf.weights import load_hf_weights
    from megatron_probsft.checkpoint.megatron.torch_dist import load_model
    from megatron_probsft.probing import report as probe_report
    from megatron_probsft.probing.probe import probe
    from megatron_probsft.runtime import distributed
    from megatron_probsft.training.log.console import Console
    from megatron_probsft.training.start.inputs import check_inputs, token_stores
    from megatron_probsft.training.state import build_gpt

    hf, checkpoint = check_inputs(config)
    distributed.initialize(
        config.tensor_model_parallel_size,
        config.pipeline_model_parallel_size,
        config.context_parallel_size,
        expert_model_parallel_size=config.expert_model_parallel_size,
    )
    store, _ = token_stores(config, hf)
    model = build_gpt(config, hf)
    if checkpoint is None:
        load_hf_weights(model, hf)
    else:
        load_model(model, checkpoint)
    console = Console(active=distributed.rank() == 0)
    readings = probe(model, store, hf.shape.vocab_size, config, most, console.progress)
    console.show(probe_report.table(readings))
    return readings


if __name__ == "__main__":
    main()
