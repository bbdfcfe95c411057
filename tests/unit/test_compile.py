"""torch.compile: whole graphs, and the numbers of eager code."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import rpiae
from rpiae.core.model import attention as attention_module
from rpiae.core.model import folding
from rpiae.core.model.attention import (
    ENVIRONMENT,
    Causal,
    Window,
    attention,
    attention_backend,
    choose_backend,
)
from rpiae.core.model.blocks import recomputing
from rpiae.core.model.resolve import part_config
from rpiae.core.model.tokenizer import RPiAE
from tests.toys import BRIDGES, CRITICS, DECODERS, ENCODERS

#: Every built-in part once; tracing takes seconds, so some only with --slow.
COMBINATIONS = [
    *(pytest.param((encoder, "identity", "vit"), marks=pytest.mark.slow) for encoder in ENCODERS),
    *(("vit", bridge, "vit") for bridge in BRIDGES),
    ("vit", "vb4", "conv"),
]
TRAINED = [
    ("vit", "vb4", "vit"),
    *(pytest.param(("vit", bridge, "conv"), marks=pytest.mark.slow) for bridge in BRIDGES),
    *(pytest.param((encoder, "vb4", "vit"), marks=pytest.mark.slow) for encoder in ENCODERS),
]


def _name(parts: tuple[str, str, str]) -> str:
    return "-".join(parts)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def tokenizer(encoder: str = "vit", bridge: str = "vb4", decoder: str = "vit") -> RPiAE:
    return rpiae.build(
        encoder=ENCODERS[encoder], bridge=BRIDGES[bridge], decoder=DECODERS[decoder],
        pretrained=False,
    ).eval()  # fmt: skip


def images(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(*(shape or (2, 3, 36, 28)), generator=generator)


def traced(module: Callable[..., Any], **options: Any) -> Any:
    """Traced to one graph without a break, run by eager kernels: the same bits."""
    return torch.compile(module, backend="eager", fullgraph=True, **options)


@pytest.mark.parametrize("parts", COMBINATIONS, ids=_name)
def test_a_whole_model_is_one_graph_with_equal_outputs(parts: tuple[str, str, str]) -> None:
    model = tokenizer(*parts)
    with torch.no_grad():
        assert torch.equal(traced(model)(images()), model(images()))


@pytest.mark.parametrize("name", CRITICS)
def test_a_critic_is_one_graph_with_equal_outputs(name: str) -> None:
    critic = part_config("critics", CRITICS[name]).build().eval()
    assert torch.equal(traced(critic)(images()), critic(images()))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("parts", TRAINED, ids=_name)
def test_a_training_step_has_equal_gradients(parts: tuple[str, str, str], recompute: bool) -> None:
    model = tokenizer(*parts).train()
    other = copy.deepcopy(model)

    def loss(model: RPiAE, x: Tensor) -> Tensor:
        posterior = model.encode(x)
        made = model.decode(posterior.mode(), size=(x.shape[-2], x.shape[-1]))
        return (made - x).abs().mean()

    with recomputing(recompute):
        loss(model, images()).backward()
        torch.compile(loss, backend="aot_eager", fullgraph=True)(other, images()).backward()
    theirs = dict(other.named_parameters())
    assert any(p.grad is not None for p in theirs.values())
    for name, parameter in model.named_parameters():
        own, found = parameter.grad, theirs[name].grad
        assert (own is None) == (found is None), name
        if own is not None and found is not None:
            torch.testing.assert_close(found, own, rtol=0, atol=1e-5 * (1 + own.abs().max().item()))


def test_other_sizes_and_batches_are_traced_too() -> None:
    model = tokenizer()
    compiled = traced(model, dynamic=True)
    with torch.no_grad():
        for shape in ((2, 3, 36, 28), (3, 3, 64, 20), (1, 3, 33, 100)):
            assert torch.equal(compiled(images(*shape)), model(images(*shape)))


def test_half_precision_is_traced_too() -> None:
    model = tokenizer().to(torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(traced(model)(images()), model(images()))


@torch.inference_mode()
def test_a_clip_is_traced_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "MOST_FOLDED", 4)
    model = tokenizer()
    clip = images(2, 3, 3, 12, 20)
    assert torch.equal(traced(model)(clip), model(clip))


@pytest.mark.parametrize("backend", ["math", "sdpa"])
@pytest.mark.parametrize("mask", [Causal(), Causal(frame=3), Window(last=2, frame=2)], ids=str)
def test_masks_are_traced_too(mask: Causal, backend: str) -> None:
    def masked(q: Tensor, k: Tensor) -> Tensor:
        return attention(q, k, k, mask=mask, backend=backend)

    together = traced(masked)
    for n, m in ((6, 6), (3, 7), (10, 10)):
        q, k = torch.randn(2, 2, n, 4), torch.randn(2, 2, m, 4)
        torch.testing.assert_close(together(q, k), masked(q, k))


@pytest.mark.parametrize("where", ["argument", "context", "environment", "automatic"])
def test_the_backend_is_chosen_while_a_graph_is_traced(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []
    for name, kernel in attention_module._IMPLEMENTATIONS.items():
        monkeypatch.setitem(attention_module._IMPLEMENTATIONS, name, _noting(used, name, kernel))
    q, k, v = images(3, 1, 2, 40, 8)
    argument = "math" if where == "argument" else None
    if where == "environment":
        monkeypatch.setenv(ENVIRONMENT, "math")
    with attention_backend("math") if where == "context" else contextlib.nullcontext():
        found = traced(lambda q, k, v: attention(q, k, v, backend=argument))(q, k, v)
    assert set(used) == {"sdpa" if where == "automatic" else "math"}
    torch.testing.assert_close(found, attention(q, k, v, backend="math"))


def _noting(used: list[str], name: str, kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def noting(*arguments: Any) -> Tensor:
        used.append(name)
        return kernel(*arguments)

    return noting


def test_xformers_is_not_chosen_for_traced_code() -> None:
    choice = choose_backend("cuda", torch.float16, 64, compiled=True)
    assert choice.name == "sdpa"
    assert "torch.compile" in choice.reason


@pytest.mark.slow
def test_inductor_gives_the_numbers_of_eager_code() -> None:
    model = tokenizer()
    with torch.no_grad():
        torch.testing.assert_close(
            torch.compile(model)(images()), model(images()), atol=1e-5, rtol=0
        )
