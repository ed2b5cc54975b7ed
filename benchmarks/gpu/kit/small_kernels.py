"""Both Triton kernels once, on odd small shapes: what `sanitizer` looks at."""

from __future__ import annotations

import torch

from megatron_probsft.vocab_parallel.log_probs import token_log_probs


def run(device: str = "cuda") -> None:
    """Take rows that end in a block, padding after the vocabulary, rows to leave out, all statistics."""
    for tokens, vocab, width in ((5, 131, 131), (7, 4999, 5008), (3, 8192, 8192)):
        for dtype in (torch.bfloat16, torch.float32):
            logits = torch.randn(tokens, width, device=device).to(dtype).requires_grad_()
            labels = torch.arange(tokens, device=device) * 7
            labels[1] = -100
            log_p, _ = token_log_probs(
                logits, labels, vocab_size=vocab, group=None, needs=("entropy", "collision", "correct")
            )
            torch.where(labels >= 0, 1 - log_p.exp(), 0.0).sum().backward()


if __name__ == "__main__":
    run()
    torch.cuda.synchronize()
