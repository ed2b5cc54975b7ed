"""`python -m megatron_probsft VERB …`, as `probsft VERB …`."""

from megatron_probsft.commands.main import main

if __name__ == "__main__":
    main()
