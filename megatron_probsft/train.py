"""`torchrun … -m megatron_probsft.train`: see megatron_probsft/commands/train.py."""

from megatron_probsft.commands.train import main

if __name__ == "__main__":
    main()
