"""Run the paper's experiments: data → probe → base score → training → score → report and table.

probsft one-click --dataset math --model_save_name qwen-2.5-math-1.5b \\
    --trainer_objective_trans original p GeneralFamily-8 --seed 1 2 --nproc_per_node 8 --run_script
probsft one-click --dataset figfont --model_save_name smollm2-135m \\
    --trainer_objective_trans GeneralFamily-8 --run_script             # offline, two CPU cores, a few minutes

Without --run_script it writes the commands as a bash script and prints it. With it they run, each printed;
started again after any interruption, it continues, and what is finished is not done again. smollm2-135m comes
from its package and trains on data that need no hub (generated; stand-ins for math and medicine), little of
them. Flags may be spelled with underscores or hyphens. The trainer's are passed on; those of prepare-data and
evaluate begin with --prepare- and --score- here. The commands run in the current folder.

OUTPUT/<dataset>/<model>/ has <objective>-seed<k>/{megatron,hf,score}, base/score, probe, report, results.md
"""

import sys

from megatron_probsft.experiments import results
from megatron_probsft.experiments.arguments import read_command_line
from megatron_probsft.experiments.plan import Sweep, data_of, file_name, plan
from megatron_probsft.experiments.script import render
from megatron_probsft.experiments.steps import Step, run_steps
from megatron_probsft.experiments.words import shown_path
from megatron_probsft.runtime.consoles import console
from megatron_probsft.runtime.errors import one_line_errors
from megatron_probsft.runtime.folders import write_whole


def main() -> None:
    with one_line_errors():
        asked = read_command_line(sys.argv[1:], str(__doc__))
        sweep, steps = asked.sweep, plan(asked.sweep)
        if asked.run:
            run(sweep, steps)
        else:
            write_script(sweep, steps)


def run(sweep: Sweep, steps: list[Step]) -> None:
    """Run the steps that are not done, then write and show the results."""
    screen = console(110)
    run_steps(steps, screen)
    content = results.collect(sweep, data_of(sweep))
    results.write(content, sweep.folder)
    results.show(content, screen)
    print(f"wrote results.json and results.md into {shown_path(sweep.folder)}, and report/ beside them")


def write_script(sweep: Sweep, steps: list[Step]) -> None:
    """Write the steps as a bash script beside the results, and print it."""
    objectives = ", ".join(sweep.objectives)
    text = render(f"{sweep.dataset}, {sweep.model.name}: {objectives}", steps)
    seeds = "-".join(map(str, sweep.seeds))
    file = sweep.folder / f"{'+'.join(map(file_name, sweep.objectives))}-seed{seeds}.sh"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, text)
    file.chmod(0o755)
    print(f"{text}\nwrote {shown_path(file)}; bash {shown_path(file)} runs it")


if __name__ == "__main__":
    main()
