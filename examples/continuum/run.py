"""Run the paper's continuum at small scale: three domains × four objectives, training → vLLM score → report.

python examples/continuum/run.py                                        # two CPU cores, under two hours
python examples/continuum/run.py --recipe examples/continuum/gpu.yaml   # one GPU, more of everything

Each domain is one sweep of probsft one-click, printed as it runs. Started again after an interruption, it
continues. It leaves summary.json, summary.png and report.md in the recipe's output folder, and each sweep's
own results.md and report/ under <output>/<domain>/<model>/.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron_probsft.domains.registry import domains
from megatron_probsft.experiments.words import shown_path, words_of
from megatron_probsft.runtime.consoles import console
from megatron_probsft.runtime.errors import UserError, one_line_errors
from megatron_probsft.runtime.folders import check_writable
from megatron_probsft.runtime.read_files import read_yaml_mapping
from megatron_probsft.runtime.run_files.scoring import SweepResults

KEYS = {
    "all": dict, "domains": dict, "model_save_name": str, "output": str, "seed": (int, list),
    "trainer_objective_trans": (str, list),
}  # fmt: skip
"""The keys of a recipe, with the types of their values."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    cpu = Path(__file__).with_name("cpu.yaml")
    parser.add_argument("--recipe", type=Path, default=cpu, help="YAML file (default: cpu.yaml)")
    parser.add_argument("--output", type=Path, help="folder (default: the recipe's)")
    args = parser.parse_args()
    with one_line_errors():
        recipe = read_recipe(args.recipe)
        if args.output:
            recipe["output"] = args.output
        run(recipe)


def run(recipe: dict[str, Any]) -> None:
    """Run the sweeps one after the other; after each, write what is known so far."""
    from examples.continuum import summary  # here, as matplotlib takes a second

    screen, started = console(), time.perf_counter()
    output = Path(recipe["output"]).resolve()
    check_writable(output, "--output")
    results: list[dict[str, Any]] = []
    for number, domain in enumerate(recipe["domains"], start=1):
        began = time.perf_counter()
        words = sweep_words(recipe, domain, output)
        minutes = (began - started) / 60
        screen.rule(f"[bold]{minutes:.0f} min  domain {number} of {len(recipe['domains'])}: {domain}")
        screen.print(f"$ python {shlex.join(words)}", soft_wrap=True, highlight=False, markup=False)
        code = subprocess.run([sys.executable, *words], check=False).returncode
        if code:
            raise UserError(f"the sweep of {domain} ended with exit status {code}: see the lines above")
        folder = output / domain / recipe["model_save_name"]
        result = SweepResults.read_file(folder / "results.json", needs=["data", "probe", "rows"])
        results.append(result | {"folder": shown_path(folder), "command": shlex.join(words)})
        summary.write(output, results, time.perf_counter() - started)
    summary.show(results, screen)
    print(f"wrote summary.json, summary.png and report.md into {shown_path(output)}")


def sweep_words(recipe: dict[str, Any], domain: str, output: Path) -> list[str]:
    """Return the words, after `python`, of the command that runs a domain's sweep."""
    named = {name: recipe[name] for name in ("model_save_name", "trainer_objective_trans", "seed")}
    flags = {"dataset": domain, **named, **recipe["all"], **recipe["domains"][domain], "output": output}
    return ["-m", "megatron_probsft.commands.one_click", *words_of(flags), "--run-script"]


def read_recipe(file: Path) -> dict[str, Any]:
    """Read a recipe. Raises UserError: no such file, no YAML, or other keys than a recipe has."""
    recipe = read_yaml_mapping(file, "--recipe")
    if set(recipe) != set(KEYS):
        raise UserError(f"--recipe {file} must have the keys {', '.join(KEYS)}")
    for key, kind in KEYS.items():
        if not isinstance(recipe[key], kind):
            wanted = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
            raise UserError(f"--recipe {file}: {key} must be {wanted}, got {recipe[key]!r}")
    for domain, flags in recipe["domains"].items():
        if domain not in domains():
            raise UserError(f"--recipe {file}: domains has {domain!r}: use some of {', '.join(domains())}")
        if not isinstance(flags, dict):
            raise UserError(f"--recipe {file}: domains: {domain} must hold flags and values, got {flags!r}")
    if not recipe["domains"]:
        raise UserError(f"--recipe {file} names no domains: give {', '.join(domains())}")
    return recipe


if __name__ == "__main__":
    main()
