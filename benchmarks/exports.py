"""A tokenizer, and its graphs of torch.export and ONNX: time per image, as ratios.

    python benchmarks/exports.py --encoder dinov2-s --bridge vb64 --decoder vit-b --size 256 256

Random weights. Prints milliseconds per image (the best of several rounds, variants in turn) and the ratio
to the tokenizer itself. onnxruntime has as many threads as torch.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor

import rpiae


def from_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """The first output of an ONNX file's graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    [given, *_] = session.get_inputs()
    return lambda values: torch.from_numpy(session.run(None, {given.name: values.numpy()})[0])


def from_pt2(path: Path) -> Callable[[Tensor], Tensor]:
    """The first output of a graph of torch.export."""
    graph = torch.export.load(path).module()
    return lambda values: graph(values)[0]


@torch.no_grad()
def main() -> None:
    """Export, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for field, default in (("encoder", "dinov2-s"), ("bridge", "vb64"), ("decoder", "vit-b")):
        parser.add_argument(f"--{field}", default=default)
    parser.add_argument("--size", nargs=2, type=int, default=(256, 256))
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    model = rpiae.build(
        encoder=given.encoder, bridge=given.bridge, decoder=given.decoder, pretrained=False
    ).eval()
    images = torch.rand(given.batch_size, 3, *given.size)
    latent = model.encode(images).mode()
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, dict[str, Callable[[], object]]] = {
            "encoder": {"tokenizer": lambda: model.encode(images)},
            "decoder": {"tokenizer": lambda: model.decode(latent)},
        }
        for to, ending, load in (("torch-export", "pt2", from_pt2), ("onnx", "onnx", from_onnx)):
            for size in (tuple(given.size), None):
                out = Path(folder, f"{to}-{size}")
                named = {"size": size} if size else {"dynamic": True}
                rpiae.export_model(model, to=to, out=out, **named)
                for half, values in (("encoder", images), ("decoder", latent)):
                    run = load(out / f"{half}.{ending}")
                    what = f"{to}, {'one size' if size else 'dynamic'}"
                    ways[half][what] = lambda run=run, values=values: run(values)
        for half, variants in ways.items():
            best = dict.fromkeys(variants, float("inf"))
            for _ in range(given.rounds):
                for name, once in variants.items():
                    started = time.perf_counter()
                    once()
                    best[name] = min(best[name], time.perf_counter() - started)
            for name, seconds in best.items():
                each, ratio = 1000 * seconds / given.batch_size, seconds / best["tokenizer"]
                print(f"{half} {name:24} {each:8.1f} ms/image  {ratio:.2f}")


if __name__ == "__main__":
    main()
