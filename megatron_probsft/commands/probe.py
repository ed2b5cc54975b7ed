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
from megatron_probsft.runtime.processes.environment import check_environment
from megatron_probsft.runtime.processes.launch import launched_rank
from megatron_probsft.training.config.arguments import Parser, add_flags
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.start.checks import check_start
from megatron_probsft.training.start.problems import Problems

if TYPE_CHECKING:
    from megatron_probsft.probing.probe import Reading

_FLAGS = (
    "hf_model", "load", "ckpt_step", "data", "template", "template_date", "prompt_key", "response_key",
    "messages_key", "truncation", "data_cache_path", "num_workers", "seq_length", "global_batch_size",
    "micro_batch_size", "bf16", "tensor_model_parallel_size", "pipeline_model_parallel_size",
    "context_parallel_size", "expert_model_parallel_size", "sequence_parallel",
    "decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers", "loss_path",
    "loss_chunk_tokens", "loss_kernels", "distributed_timeout_minutes",
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
            usual = {"finetune": given.get("load") is not None, "train_iters": 1}
            config = TrainConfig.of(**(usual | given), save=str(output or Path(nowhere) / "probe"))
            check_environment()
            check_start(config, Problems())
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
    from megatron_probsft.runtime.imports import fast_imports  # noqa: F401  # isort: skip

    from megatron_probsft.probing import report as probe_report
    from megatron_probsft.runtime import distributed
    from megatron_probsft.training.log.console import Console
    from megatron_probsft.training.probe_data import probe_data
    from megatron_probsft.training.start.inputs import find_model
    from megatron_probsft.training.start.open_run import open_inputs, open_model

    config, inputs = open_inputs(config, find_model(config, Problems()))
    model = open_model(config, inputs)
    console = Console(active=distributed.rank() == 0)
    readings = probe_data(config, model, inputs, most, console.progress)
    console.show(probe_report.table(readings))
    return readings


if __name__ == "__main__":
    main()
