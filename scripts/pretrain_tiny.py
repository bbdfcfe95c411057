"""Pretrain the embedded pivot `tiny` on CIFAR-10 and write its shipped weights.

Two runs. The first is supervised classification from the mean of the affine-free normalised patch
tokens, so the tokens themselves carry the semantics. The second goes on with a pixel loss through a
linear head, so the tokens carry the picture as well. Batch norm in the convolutional stem exists during pretraining only
and is folded into the convolutions on export. Interrupted runs continue from the last epoch.

    python scripts/pretrain_tiny.py --train train.parquet --test test.parquet --work work/semantic \
        --epochs 12 --stop-after 10
    python scripts/pretrain_tiny.py --train train.parquet --test test.parquet --work work/tiny \
        --start work/semantic/checkpoint.pt --epochs 1 --lr 1e-3 --pixels 4

The parquet files are in the Hugging Face image layout: columns `image` ({bytes, path}) and `label`.
Writes `tiny.safetensors` (half precision) into --work and prints the linear-probe accuracy of that
very file. Copy it to rpiae/encoders/weights/tiny.safetensors to ship it.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from rpiae.core.model.attention import attention_backend
from rpiae.core.model.geometry import patchify
from rpiae.core.model.resolve import part_config
from rpiae.encoders.vit import VitEncoder

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
WIDTH, DEPTH, HEADS = 192, 6, 3


def load(path: Path) -> tuple[Tensor, Tensor]:
    """Images (n, 3, 32, 32) as uint8 and labels (n,)."""
    table = pyarrow.parquet.read_table(path)
    images = np.stack(
        [
            np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB"))
            for row in table["image"].to_pylist()
        ]
    )
    labels = torch.tensor(table["label"].to_pylist())
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels


def normalise(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return ((images.float() / 255) - mean) / std


def augment(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Random shift by up to 4 pixels (reflected border) and horizontal flip, per image."""
    padded = F.pad(images.float(), (4, 4, 4, 4), mode="reflect").to(torch.uint8)
    out = torch.empty_like(images)
    for i, (dy, dx, flip) in enumerate(
        zip(*(rng.integers(0, n, len(images)) for n in (9, 9, 2)), strict=True)
    ):
        crop = padded[i, :, dy : dy + 32, dx : dx + 32]
        out[i] = crop.flip(-1) if flip else crop
    return out


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = VitEncoder(width=WIDTH, depth=DEPTH, num_heads=HEADS, mean=MEAN, std=STD)
        stem: list[nn.Module] = []
        for layer in self.encoder.stem:
            stem.append(layer)
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                stem.append(nn.BatchNorm2d(layer.out_channels))
        self.encoder.stem = nn.Sequential(*stem)
        self.head = nn.Linear(WIDTH, 10)
        self.pixels = nn.Linear(WIDTH, 3 * math.prod(self.encoder.patch))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits, and every patch's pixels as a linear map of its token."""
        tokens = self.encoder(images).tokens
        return self.head(tokens.mean(1)), self.pixels(tokens)


def export(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's weights with batch norm folded into the convolutions, half precision."""
    model = Classifier()
    model.load_state_dict(state)
    folded: list[nn.Module] = []
    for layer in model.encoder.stem:
        if isinstance(layer, nn.BatchNorm2d):
            conv = folded[-1]
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, layer.running_mean, layer.running_var,
                layer.eps, layer.weight, layer.bias,
            )  # fmt: skip
        else:
            folded.append(layer)
    model.encoder.stem = nn.Sequential(*folded)
    return {k: v.detach().half().contiguous() for k, v in model.encoder.state_dict().items()}


@torch.no_grad()
def pooled(encoder: VitEncoder, images: Tensor) -> np.ndarray:
    return torch.cat(
        [encoder(normalise(batch)).tokens.mean(1) for batch in images.split(500)]
    ).numpy()


def probe(weights: Path, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Accuracy of logistic regression on the preset's mean-pooled patch tokens with these weights."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    config = part_config("encoders", "tiny")
    encoder = config.build().eval()
    encoder.load_state_dict({k: v.float() for k, v in load_file(weights).items()})
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    classifier.fit(pooled(encoder, train[0]), train[1].numpy())
    return float(classifier.score(pooled(encoder, test[0]), test[1].numpy()))


def optimisers(model: Classifier, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for everything else."""
    matrices = [p for p in model.encoder.transformer.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, weight_decay=0.05, betas=(0.9, 0.98)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)  # fmt: skip
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--stop-after", type=int, help="stop after this many of the epochs")
    parser.add_argument("--start", type=Path, help="checkpoint of an earlier run to start from")
    parser.add_argument("--pixels", type=float, default=0.0, help="weight of the pixel loss")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

    train, test = load(args.train), load(args.test)
    torch.manual_seed(args.seed)
    model = Classifier()
    if args.start:
        model.load_state_dict(torch.load(args.start, weights_only=True)["ema"], strict=False)
    ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
    steps_per_epoch = len(train[0]) // args.batch
    total = args.epochs * steps_per_epoch
    opts = optimisers(model, args.lr)
    checkpoint, first = args.work / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        ema, first = saved["ema"], saved["epoch"]
        for opt, state in zip(opts, saved["optimisers"], strict=True):
            opt.load_state_dict(state)

    last = args.stop_after or args.epochs
    for epoch in range(first, last):
        rng = np.random.default_rng([args.seed, epoch])
        order = torch.from_numpy(rng.permutation(len(train[0])))
        model.train()
        started, running = time.time(), 0.0
        for i in range(steps_per_epoch):
            step = epoch * steps_per_epoch + i
            index = order[i * args.batch : (i + 1) * args.batch]
            images, labels = normalise(augment(train[0][index], rng)), train[1][index]
            targets = F.one_hot(labels, 10).float()
            mix = rng.beta(0.2, 0.2)
            images = mix * images + (1 - mix) * images.flip(0)
            targets = mix * targets + (1 - mix) * targets.flip(0)
            warm = min(1.0, (step + 1) / (steps_per_epoch / 4))
            factor = warm * 0.5 * (1 + math.cos(math.pi * step / total))
            for opt in opts:
                for group in opt.param_groups:
                    group["lr"] = args.lr * factor
            with torch.autocast("cpu", torch.bfloat16), attention_backend("math"):
                logits, pixels = model(images)
            loss = F.cross_entropy(logits.float(), targets, label_smoothing=0.1)
            if args.pixels:
                wanted = patchify(images.unsqueeze(2), model.encoder.patch)
                loss = loss + args.pixels * F.l1_loss(pixels.float(), wanted)
            for opt in opts:
                opt.zero_grad()
            loss.backward()
            for opt in opts:
                opt.step()
            decay = min(0.998, (1 + step) / (10 + step))
            for name, value in model.state_dict().items():
                if value.is_floating_point():
                    ema[name].lerp_(value, 1 - decay)
                else:
                    ema[name].copy_(value)
            running += loss.item()
            if i % 50 == 49:
                rate = (i + 1) * args.batch / (time.time() - started)
                print(f"epoch {epoch} step {i + 1}/{steps_per_epoch} loss {running / 50:.3f} {rate:.0f} images/s", flush=True)  # fmt: skip
                running = 0.0
        evaluated = Classifier()
        evaluated.load_state_dict(ema)
        evaluated.eval()
        with torch.no_grad():
            right = sum(
                (evaluated(normalise(x))[0].argmax(1) == y).sum().item()
                for x, y in zip(test[0].split(500), test[1].split(500), strict=True)
            )
        print(f"epoch {epoch} test accuracy {right / len(test[0]):.4f}", flush=True)
        state = {"model": model.state_dict(), "ema": ema, "epoch": epoch + 1,
                 "optimisers": [opt.state_dict() for opt in opts]}  # fmt: skip
        torch.save(state, checkpoint.with_suffix(".part"))
        checkpoint.with_suffix(".part").rename(checkpoint)
        save_file(export(ema), args.work / "tiny.safetensors")

    weights = args.work / "tiny.safetensors"
    accuracy = probe(weights, train, test)
    result = {"probe_accuracy": accuracy, "bytes": weights.stat().st_size, "epochs": last}
    (args.work / "result.json").write_text(json.dumps(result, indent=2))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
