"""Attention backends on this machine: forward, and forward with backward, per token count.

    python benchmarks/attention.py

Prints milliseconds (the best of several runs, backends in turn) and the ratio sdpa / math.
"""

from __future__ import annotations

import time

import torch

from rpiae.core.model.attention import attention

BATCH, HEADS, HEAD_DIM, REPEATS = 16, 6, 64, 5


def milliseconds(backend: str, tokens: int, dtype: torch.dtype, *, gradients: bool) -> float:
    """One call, in milliseconds."""
    q, k, v = (
        torch.randn(BATCH, HEADS, tokens, HEAD_DIM, dtype=dtype, requires_grad=gradients)
        for _ in range(3)
    )
    started = time.perf_counter()
    with torch.set_grad_enabled(gradients):
        out = attention(q, k, v, backend=backend)
    if gradients:
        out.sum().backward()
    return 1000 * (time.perf_counter() - started)


def main() -> None:
    """Measure and print."""
    print(f"batch {BATCH}, {HEADS} heads of {HEAD_DIM}, {torch.get_num_threads()} threads")
    for dtype in (torch.float32, torch.bfloat16):
        for gradients in (False, True):
            for tokens in (64, 256, 1024):
                best = {"sdpa": float("inf"), "math": float("inf")}
                for _ in range(REPEATS):
                    for backend in best:
                        found = milliseconds(backend, tokens, dtype, gradients=gradients)
                        best[backend] = min(best[backend], found)
                what = "forward+backward" if gradients else "forward"
                print(
                    f"{dtype!s:15} {tokens:5} tokens {what:16} sdpa {best['sdpa']:8.2f} ms  "
                    f"math {best['math']:8.2f} ms  ratio {best['sdpa'] / best['math']:.2f}"
                )


if __name__ == "__main__":
    main()
