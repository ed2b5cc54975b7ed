"""From a real model to a scored model: base → SFT with two objectives → Hugging Face → vLLM → table, picture.

make quickstart                                     (or, in the environment that it makes:)
python examples/quickstart/run.py --objectives original p --steps 30

Everything it does is an ordinary command of this project; they are printed as they run, and kept in
`summary.json`, beside the table and `summary.png`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rich.console import Console

from examples.quickstart import task
from megatron_probsft.experiments.smollm2 import MODEL_NAME, build_hf_folder
from megatron_probsft.experiments.words import shown_path
from megatron_probsft.models.hf_model import read_hf_model, read_raw_config
from megatron_probsft.runtime.errors import UserError, one_line_errors
from megatron_probsft.runtime.folders import check_writable
from megatron_probsft.runtime.run_files.scoring import EvaluationSummary
from megatron_probsft.training.log.metrics_file import read_records

GLOBAL_BATCH_SIZE = 24
_LEAST = {
    "steps": 1, "heldout": 1, "tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1,
    "data_parallel_size": 1,
}  # fmt: skip


def main() -> None:
    args = _arguments()
    with one_line_errors():
        QuickStart(args).run()


class QuickStart:
    """Runs the quick start; each step is a command of the project, whose results it reads."""

    def __init__(self, args: argparse.Namespace) -> None:
        for name, least in _LEAST.items():
            if (value := getattr(args, name)) < least:
                raise UserError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
        if len(set(args.objectives)) < len(args.objectives):
            raise UserError(f"--objectives names one more than once: {' '.join(args.objectives)}")
        self.folder = Path(args.output).resolve()
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"--output {self.folder} is no folder")
        check_writable(self.folder.parent, "--output")
        if args.model != MODEL_NAME:
            read_raw_config(args.model)
        # Here: torch takes seconds to import, and --help does without it.
        from megatron_probsft.objectives.registry import ObjectiveError, get_objective

        for objective in args.objectives:
            try:
                get_objective(objective)
            except ObjectiveError as error:
                raise UserError(str(error)) from None
        self.args = args
        self.console = Console()
        self.commands: list[str] = []
        self.started = time.perf_counter()

    def run(self) -> None:
        from examples.quickstart import summary  # here, as matplotlib takes a second

        if self.folder.exists():  # nothing that an earlier run wrote is lost
            stamp = datetime.fromtimestamp(self.folder.stat().st_mtime).strftime("%Y%m%d-%H%M%S")
            older = self.folder.rename(self.folder.with_name(f"{self.folder.name}-{stamp}"))
            self._say(f"the earlier run is now {older}")
        model = self._model()
        self._check_layout(model)
        self._say("preparing the task")
        data = task.write_task(
            self.folder / "data", train=self.args.steps * GLOBAL_BATCH_SIZE, heldout=self.args.heldout
        )
        base = self._row("base", self._score(model, "base"))
        rows, curves = [base], {}
        for objective in self.args.objectives:
            began = time.perf_counter()
            tuned = self._train(model, objective)
            score = self._score(tuned, objective)
            curves[objective] = records = read_records(self._of(objective) / "megatron")
            row = self._row(objective, score, _validations(records)[-1], time.perf_counter() - began)
            base.update(_held_out(_validations(records)[0]))  # before the first step: the base model
            rows.append(row)
            summary.write(self.folder, rows, curves, self.commands, data, self._seconds())
        summary.show(self.console, rows, data)
        self._say("done")
        self.console.print(f"wrote summary.json and summary.png into {self.folder}", soft_wrap=True)

    def _model(self) -> Path:
        if self.args.model != MODEL_NAME:
            return read_hf_model(self.args.model).folder.resolve()
        self._say(f"building {MODEL_NAME} from its package")
        return build_hf_folder(Path.cwd() / "runs" / "models" / MODEL_NAME)

    def _check_layout(self, model: Path) -> None:
        from megatron_probsft.models.layout import Parallelism, parallelism_problems

        tp, pp = self.args.tensor_model_parallel_size, self.args.pipeline_model_parallel_size
        layout = Parallelism(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp)
        ranks = tp * pp * self.args.data_parallel_size
        for problem in parallelism_problems(read_hf_model(model).shape, layout, ranks):
            raise UserError(problem)

    def _train(self, model: Path, objective: str) -> Path:
        """Train under torchrun, then convert. Returns the Hugging Face folder."""
        tp, pp = self.args.tensor_model_parallel_size, self.args.pipeline_model_parallel_size
        ranks = tp * pp * self.args.data_parallel_size
        run, hf = self._of(objective) / "megatron", self._of(objective) / "hf"
        flags = {
            "--config": Path(__file__).with_name("recipe.yaml"),
            "--tensor-model-parallel-size": tp,
            "--pipeline-model-parallel-size": pp,
            "--hf-model": model,
            "--data": self.folder / "data" / "train.jsonl",
            "--valid-data": self.folder / "data" / "heldout.jsonl",
            "--data-cache-path": self.folder / "data" / "cache",
            "--objective": objective,
            "--global-batch-size": GLOBAL_BATCH_SIZE,
            "--train-iters": self.args.steps,
            "--save": run,
        }
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks]
        self._command(
            f"training with {objective} on {ranks} process(es)",
            [sys.executable, *torchrun, "-m", "megatron_probsft.train", *_words(flags)],
            {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks))},
        )
        convert = {"--megatron": run, "--hf": hf}
        self._command(
            "converting to Hugging Face",
            [sys.executable, "-m", "megatron_probsft.commands.convert", "megatron-to-hf", *_words(convert)],
        )
        return hf

    def _score(self, model: Path, name: str) -> dict[str, Any]:
        output = self._of(name) / "score"
        flags = {
            "--model": model,
            "--task": self.folder / "data" / "heldout.jsonl",
            "--output": output,
            "--grader": task.GRADER,
            "--dtype": "bfloat16",
            "--max-new-tokens": task.MAX_NEW_TOKENS,
        }
        evaluate = [sys.executable, "-m", "megatron_probsft.commands.evaluate", *_words(flags)]
        self._command(f"scoring {name} with vLLM", evaluate)
        needs = ["accuracy", "accuracy_ci95", "n", "seconds"]
        return EvaluationSummary.read_file(output / "summary.json", needs)

    def _row(
        self,
        name: str,
        score: dict[str, Any],
        validation: dict[str, Any] | None = None,
        seconds: float | None = None,
    ) -> dict[str, Any]:
        return {
            "name": name,
            **(_held_out(validation) if validation else {}),
            "accuracy": score["accuracy"],
            "accuracy_ci95": score["accuracy_ci95"],
            "n": score["n"],
            "seconds": round(score["seconds"] if seconds is None else seconds, 1),
        }

    def _command(self, title: str, words: list[Any], environment: dict[str, str] | None = None) -> None:
        words = [shown_path(word) for word in words]  # as a person types them in the current folder
        shown = shlex.join(["python" if word.endswith("bin/python") else word for word in words])
        shown = " ".join([f"{key}={value}" for key, value in (environment or {}).items()] + [shown])
        self.commands.append(shown)
        self._say(title)
        self.console.print(f"[dim]$ {shown}[/dim]", soft_wrap=True, highlight=False)
        code = subprocess.run(words, env=os.environ | (environment or {}), check=False).returncode
        if code:
            raise UserError(f"{title} failed with exit status {code}: see the lines above")

    def _say(self, text: str) -> None:
        minutes, seconds = divmod(int(self._seconds()), 60)
        self.console.rule(f"[bold]{minutes:d}:{seconds:02d}  {text}", align="left")

    def _of(self, name: str) -> Path:
        return self.folder / name

    def _seconds(self) -> float:
        return time.perf_counter() - self.started


def _words(flags: dict[str, Any]) -> list[Any]:
    return [word for pair in flags.items() for word in pair]


def _validations(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if record["kind"] == "validation"]


def _held_out(validation: dict[str, Any]) -> dict[str, float]:
    return {"heldout_nll": validation["nll"], "heldout_mean_p": validation["mean_p"]}


def _arguments() -> argparse.Namespace:
    gpus = _gpus()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--objectives", nargs="+", default=["original", task.PRIOR_LEANING])
    parser.add_argument(
        "--model", default=MODEL_NAME, help="Hugging Face folder or hub id (default: %(default)s)"
    )
    parser.add_argument(
        "--steps", type=int, default=task.STEPS, help="number of optimizer steps (default: %(default)s)"
    )
    parser.add_argument("--heldout", type=int, default=task.HELDOUT, help="number of held-out items")
    parser.add_argument("--tensor-model-parallel-size", type=int, default=3 if gpus == 0 or gpus >= 3 else 1)
    parser.add_argument("--pipeline-model-parallel-size", type=int, default=1)
    parser.add_argument("--data-parallel-size", type=int, default=1)
    parser.add_argument("--output", default="runs/quickstart", help="folder (default: %(default)s)")
    return parser.parse_args()


def _gpus() -> int:
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return len(listed.stdout.splitlines())


if __name__ == "__main__":
    main()
