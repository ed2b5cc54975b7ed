"""`python -m megatron_probsft.objectives`, as `probsft objectives`."""

import sys

from megatron_probsft.commands.objectives import main

if __name__ == "__main__":
    sys.argv[0] = "python -m megatron_probsft.objectives"  # in the usage line
    main()
