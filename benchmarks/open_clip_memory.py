"""Memory of an image tower through the part open-clip, and of the whole open_clip model.

    python benchmarks/open_clip_memory.py [MODEL]

Builds both with random weights, each in a process of its own, and prints parameters and resident
memory: what the build added to the process, and its peak. MODEL is the SoViT-400m of SigLIP by default.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import warnings

MODEL = "ViT-SO400M-14-SigLIP"


def measure(which: str, model: str) -> dict[str, float]:
    """Parameters (millions) and resident memory (MB) of one build in this process."""
    import open_clip
    import psutil

    from rpiae.core.model.resolve import part_config
    from rpiae.encoders.open_clip import OpenClipEncoder

    process = psutil.Process()
    before = process.memory_info().rss
    if which == "whole":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            built = open_clip.create_model(model, pretrained=None)
    else:
        built = part_config("encoders", f"open_clip:{model}").build()
        assert isinstance(built, OpenClipEncoder)
    after = process.memory_info().rss
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "parameters": sum(p.numel() for p in built.parameters()) / 1e6,
        "added": (after - before) / 1e6,
        "peak": peak / 1e6,
    }


def main() -> None:
    """Measure both in turn and print."""
    model = sys.argv[1] if len(sys.argv) > 1 else MODEL
    print(f"{model}, fp32, random weights")
    for which, what in (("tower", "rpiae's image tower"), ("whole", "whole open_clip model")):
        done = subprocess.run(
            [sys.executable, __file__, model, which], check=True, capture_output=True, text=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{what:22}  {found['parameters']:7.1f} M parameters  "
            f"+{found['added']:6.0f} MB resident  {found['peak']:6.0f} MB peak of the process"
        )


if __name__ == "__main__":
    if len(sys.argv) > 2:
        print(json.dumps(measure(sys.argv[2], sys.argv[1])))
    else:
        main()
