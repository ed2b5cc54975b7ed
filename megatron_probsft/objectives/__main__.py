"""`python -m megatron_probsft.objectives`, as `probsft objectives`."""

from megatron_probsft.commands.objectives import main

if __name__ == "__main__":
    main()
