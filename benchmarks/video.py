"""Speed and memory of a tokenizer of videos against the length of the clip.

    python benchmarks/video.py [--encoder tiny --bridge tvb16x4 --decoder video-vit-t] [--size 64]

Streams noise of the given lengths through random weights, each length and direction in a process of
its own, and prints frames per second and the process's peak of resident memory. ``--whole`` adds one
pass over the whole clip for comparison.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

LENGTHS = (17, 65, 257, 1000)

#: Frames that are made and given to the stream at a time.
CHUNK = 16


def measured(arguments: argparse.Namespace) -> dict[str, float]:
    """Frames per second and peak memory of one direction at one length, in this process."""
    import torch
    from torch import Tensor

    import rpiae

    model = rpiae.build(
        encoder=arguments.encoder, bridge=arguments.bridge, decoder=arguments.decoder,
        pretrained=False,
    ).eval()  # fmt: skip
    size, frames = arguments.size, arguments.frames

    def chunks() -> Iterator[Tensor]:
        for start in range(0, frames, CHUNK):
            yield torch.rand(1, 3, min(CHUNK, frames - start), size, size)

    with torch.no_grad(), model.stream(size=(size, size)) as stream:
        if arguments.direction == "whole":
            clip = torch.cat(list(chunks()), dim=2)
            begun = time.perf_counter()
            model.reconstruct(clip)
        elif arguments.direction == "encode":
            begun = time.perf_counter()
            for chunk in chunks():
                stream.encode(chunk)
            stream.finish()
        else:
            shape = model.latent_shape(size, size)
            steps = -(-(frames - 1) // model.config.bridge_facts.temporal_downsampling) + 1
            begun = time.perf_counter()
            for _ in range(steps):
                stream.decode(torch.randn(1, shape[0], 1, *shape[1:]), frames=frames)
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"speed": frames / seconds, "peak": peak / 2**20}


def main() -> None:
    """Measure all lengths in turn and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--encoder", default="tiny")
    parser.add_argument("--bridge", default="tvb16x4")
    parser.add_argument("--decoder", default="video-vit-t")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--frames", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--direction", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.direction:
        print(json.dumps(measured(arguments)))
        return
    directions = ["encode", "decode", *(["whole"] if arguments.whole else [])]
    print(f"{arguments.size}×{arguments.size} pixels, fp32, random weights")
    for frames in LENGTHS:
        for direction in directions:
            command = [sys.executable, *sys.argv, f"--frames={frames}", f"--direction={direction}"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{frames:5} frames  {direction:6}  {found['speed']:7.1f} frames/s  "
                f"{found['peak']:6.0f} MiB peak"
            )


if __name__ == "__main__":
    main()
