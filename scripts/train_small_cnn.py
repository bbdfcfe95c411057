"""Train the small CNN, a second opinion for Fréchet distances, on CIFAR-10.

    python scripts/train_small_cnn.py --train train.parquet --test test.parquet --out cnn.safetensors

Random shifts and flips, SGD with Nesterov's momentum, one cycle of the learning rate. Batch norm
exists in training only and is folded into the convolutions before the test and on export. The
parquet files are in the Hugging Face image layout: columns `image` ({bytes, path}) and `label`.
Twelve epochs take some seven minutes on one core with bf16 arithmetic. Use the result as feature
space `cnn:cnn.safetensors`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pretrain_tiny import augment, load
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rpiae.evaluation.cnn import SmallCnn, save_cnn


def with_batch_norm(module: nn.Module) -> None:
    """Put a batch norm behind every convolution inside ``module``, in place."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d):
            setattr(module, name, nn.Sequential(child, nn.BatchNorm2d(child.out_channels)))
        else:
            with_batch_norm(child)


def without_batch_norm(module: nn.Module) -> None:
    """Fold the batch norms of a module in eval mode into its convolutions, in place."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Sequential) and isinstance(child[0], nn.Conv2d):
            setattr(module, name, fuse_conv_bn_eval(child[0], child[1]))
        else:
            without_batch_norm(child)


def in_unit_range(images: Tensor) -> Tensor:
    return images.float() / 255


@torch.no_grad()
def accuracy(model: SmallCnn, images: Tensor, labels: Tensor) -> float:
    """Share of right answers, in fp32."""
    right = sum(
        int((model(in_unit_range(x)).argmax(1) == y).sum())
        for x, y in zip(images.split(500), labels.split(500), strict=True)
    )
    return right / len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)  # fmt: skip
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)

    images, labels = load(args.train)
    test = load(args.test)
    torch.manual_seed(args.seed)
    model = SmallCnn(classes=int(labels.max()) + 1)
    with_batch_norm(model)
    model.to(memory_format=torch.channels_last)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim == 1]
    optimiser = torch.optim.SGD(
        [{"params": matrices, "weight_decay": 5e-4}, {"params": rest, "weight_decay": 0.0}],
        lr=args.lr, momentum=0.9, nesterov=True,
    )  # fmt: skip
    per_epoch = len(images) // args.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, args.lr, total_steps=args.epochs * per_epoch, pct_start=0.2,
        anneal_strategy="linear", cycle_momentum=False, final_div_factor=1e3,
    )  # fmt: skip

    began = time.time()
    for epoch in range(args.epochs):
        rng = np.random.default_rng([args.seed, epoch])
        order = torch.from_numpy(rng.permutation(len(images)))
        started, total = time.time(), 0.0
        for index in order[: per_epoch * args.batch].split(args.batch):
            batch = in_unit_range(augment(images[index], rng))
            with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
                logits = model(batch)
            loss = F.cross_entropy(logits.float(), labels[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        rate = per_epoch * args.batch / (time.time() - started)
        print(f"epoch {epoch + 1}/{args.epochs} loss {total / per_epoch:.3f} {rate:.0f} images/s", flush=True)  # fmt: skip
    seconds = time.time() - began

    model.eval()
    without_batch_norm(model)
    model.to(memory_format=torch.contiguous_format)
    facts = save_cnn(
        model, args.out, accuracy=accuracy(model, *test), seed=args.seed,
        training=f"{args.train.parent.name}, {len(images)} images, {args.epochs} epochs, {args.precision}",
    )  # fmt: skip
    result = {
        "test_accuracy": facts.accuracy,
        "images_per_second": round(args.epochs * per_epoch * args.batch / seconds),
        "seconds": round(seconds),
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights_sha256": facts.weights_sha256,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
