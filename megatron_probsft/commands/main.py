"""`probsft VERB …`, or `python -m megatron_probsft VERB …`: one program for everything that people run.

probsft train         fine-tune a model; on several GPUs: torchrun … -m megatron_probsft.train
probsft convert       convert between Hugging Face folders and Megatron checkpoints, exactly
probsft evaluate      generate with vLLM, grade and score
probsft probe         see which objective fits your data
probsft prepare-data  fetch, convert or generate the data of a domain
probsft report        show runs side by side
probsft one-click     run the paper's experiments
probsft objectives    list the objectives and draw them

probsft VERB --help says more; probsft --version names the version.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys

from megatron_probsft.runtime.errors import UserError, one_line_errors
from megatron_probsft.runtime.suggestions import nearest

VERBS = ("train", "convert", "evaluate", "probe", "prepare-data", "report", "one-click", "objectives")


def main() -> None:
    """Run the verb that the command line names first; its module reads the rest."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("-h", "--help"):
        print(f"usage: probsft VERB …\n\n{__doc__}", end="")
        return
    if verb == "--version":
        print(f"megatron_probsft {importlib.metadata.version('megatron_probsft')}")
        return
    with one_line_errors():
        if verb not in VERBS:
            near = nearest(verb, VERBS)
            hint = f"did you mean {near}?" if near else f"use one of {', '.join(VERBS)}"
            raise UserError(f"probsft {verb}: there is no such verb: {hint}")
    sys.argv = [f"probsft {verb}", *sys.argv[2:]]
    importlib.import_module(f"megatron_probsft.commands.{verb.replace('-', '_')}").main()
