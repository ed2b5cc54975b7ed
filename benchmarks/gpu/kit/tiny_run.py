"""One process of a tiny run: `python -m benchmarks.gpu.kit.tiny_run OPTIONS`; `correctness` starts some.

Takes a JSON object: `action` is one of the functions below, `settings` are a TrainConfig's, `result` names a
file to write, and `without_te` hides Transformer Engine.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.kit.place import hide

KILLED_FROM = 5
"""The step from which a run that is to be killed waits for its checkpoint."""


def main() -> None:
    options = json.loads(sys.argv[1])
    if options["without_te"]:
        hide("transformer_engine")
    from megatron_probsft.runtime.quiet import quiet_libraries

    quiet_libraries()
    import torch

    torch.set_num_threads(1)  # so small that threads would only wait for each other
    torch.set_float32_matmul_precision("highest")  # an image may have set TF32
    # Sums in one order, where the library has such kernels: two runs are the same bit for bit.
    torch.use_deterministic_algorithms(True, warn_only=True)
    from megatron_probsft.runtime import distributed

    actions = {"losses": losses, "train": train, "train_and_die": train_and_die, "convert": convert}
    result = actions[options["action"]](options["settings"])
    Path(options["result"]).write_text(json.dumps(result))
    distributed.shutdown()


def losses(settings: dict[str, Any]) -> dict[str, Any]:
    """Return log p of every supervised token of the data, then the loss and gradient norm of each step."""
    from megatron_probsft.training.config.config import TrainConfig
    from megatron_probsft.training.start.open_run import open_run
    from megatron_probsft.training.step import train_step, validate

    run = open_run(TrainConfig.of(**settings))
    log_p: list[float] = []
    validate(
        run.state.model,
        run.batches.in_order(0),
        run.criterion,
        lambda tokens: log_p.extend(tokens.log_p.tolist()),
    )
    steps = []
    while run.state.iteration < run.train_iters:
        batch = run.batches.training_step(run.state.consumed_samples)
        result = train_step(run.state, batch, run.criterion)
        steps.append((result.means.loss, result.grad_norm))
    attention: Any = run.state.gpt[0].decoder.layers[0].self_attention
    return {
        "log_p": log_p,
        "losses": [loss for loss, _ in steps],
        "norms": [norm for _, norm in steps],
        "layer": type(attention.linear_qkv).__name__,
    }


def train(settings: dict[str, Any]) -> None:
    """Do a whole run, as the command does it."""
    from megatron_probsft.training.config.config import TrainConfig
    from megatron_probsft.training.loop import run

    run(TrainConfig.of(**settings))


def train_and_die(settings: dict[str, Any]) -> None:
    """Do a run that is killed, as by a lost node, some steps after its first checkpoint."""
    from megatron_probsft.training import loop

    step, newest = loop.train_step, Path(settings["save"]) / "latest_checkpointed_iteration.txt"

    def step_or_die(state: Any, *rest: Any) -> Any:
        if state.iteration >= KILLED_FROM:
            time.sleep(0.5)  # it may be written in the background
            if newest.exists():
                os.kill(os.getpid(), signal.SIGKILL)
        return step(state, *rest)

    loop.train_step = step_or_die
    train(settings)


def convert(settings: dict[str, Any]) -> dict[str, Any]:
    """Convert a Hugging Face folder and back, and two runs' checkpoints; return which of them are equal."""
    import torch
    from safetensors.torch import load_file

    from megatron_probsft.checkpoint.convert import hf_to_megatron, megatron_to_hf
    from megatron_probsft.runtime import distributed

    distributed.initialize()
    hf, work = Path(settings["hf_model"]), Path(settings["save"])

    def weights(run: Path, name: str) -> dict[str, torch.Tensor]:
        folder = megatron_to_hf(run, work / name).folder
        return {key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}

    def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
        return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)

    hf_to_megatron(hf, work / "megatron")
    there_and_back = same(load_file(hf / "model.safetensors"), weights(work / "megatron", "back"))
    runs = [weights(Path(run), f"run{number}") for number, run in enumerate(settings["runs"])]
    return {"conversion": there_and_back, "runs": all(same(runs[0], run) for run in runs)}


if __name__ == "__main__":
    main()
