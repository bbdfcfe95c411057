"""Every attention backend against the plain one, and the order in which they are chosen."""

from __future__ import annotations

import sys
from contextlib import ExitStack, nullcontext
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rpiae.core.errors import UsageError
from rpiae.core.model import attention as module
from rpiae.core.model.attention import ENVIRONMENT, attention, attention_backend, choose_backend

sizes = st.integers(1, 5)
seeds = st.integers(0, 2**31)
scales = st.none() | st.floats(0.01, 2)
runnable = st.sampled_from(["math", "sdpa"])


@pytest.fixture(autouse=True)
def _environment_without_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)


@st.composite
def queries_keys_values(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    b, heads, n, m, d = (draw(sizes) for _ in range(5))
    generator = torch.Generator().manual_seed(draw(seeds))
    q = torch.randn(b, heads, n, d, generator=generator)
    k, v = torch.randn(2, b, heads, m, d, generator=generator)
    return q, k, v


def _written_out(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    weights = torch.einsum("bhnd,bhmd->bhnm", q.double(), k.double()) * factor
    return torch.einsum("bhnm,bhmd->bhnd", weights.softmax(dim=-1), v.double()).float()


@given(queries_keys_values(), scales, runnable)
def test_backends_compute_attention(
    qkv: tuple[Tensor, Tensor, Tensor], scale: float | None, backend: str
) -> None:
    found = attention(*qkv, scale=scale, backend=backend)
    torch.testing.assert_close(found, _written_out(*qkv, scale), rtol=1e-5, atol=1e-6)
    reference = attention(*qkv, scale=scale, backend="math")
    torch.testing.assert_close(found, reference, rtol=1e-5, atol=1e-6)


@given(queries_keys_values(), runnable)
def test_backends_have_the_same_gradients(qkv: tuple[Tensor, Tensor, Tensor], backend: str) -> None:
    def gradients(name: str) -> tuple[Tensor, ...]:
        leaves = [t.clone().requires_grad_() for t in qkv]
        return torch.autograd.grad(attention(*leaves, backend=name).square().sum(), leaves)

    for found, wanted in zip(gradients(backend), gradients("math"), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


class FakeXformers:
    """``xformers.ops`` on CPU: takes (b, n, heads, d), wants a scale, remembers its calls."""

    def __init__(self) -> None:
        self.shapes: list[tuple[tuple[int, ...], ...]] = []
        self.scales: list[float] = []

    def memory_efficient_attention(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float
    ) -> Tensor:
        self.shapes.append((tuple(q.shape), tuple(k.shape), tuple(v.shape)))
        self.scales.append(scale)
        weights = torch.einsum("bnhd,bmhd->bhnm", q, k) * scale
        return torch.einsum("bhnm,bmhd->bnhd", weights.softmax(dim=-1), v)

    def installed(self) -> pytest.MonkeyPatch:
        patch = pytest.MonkeyPatch()
        package, ops = ModuleType("xformers"), ModuleType("xformers.ops")
        vars(ops)["memory_efficient_attention"] = self.memory_efficient_attention
        patch.setitem(sys.modules, "xformers", package)
        patch.setitem(sys.modules, "xformers.ops", ops)
        patch.setattr(module, "_xformers_problem", lambda *_: None)
        return patch


@given(queries_keys_values(), scales)
def test_xformers_gets_its_own_layout_and_the_scale(
    qkv: tuple[Tensor, Tensor, Tensor], scale: float | None
) -> None:
    q, k, v = qkv
    fake = FakeXformers()
    patch = fake.installed()
    try:
        found = attention(q, k, v, scale=scale, backend="xformers")
    finally:
        patch.undo()
    torch.testing.assert_close(found, _written_out(q, k, v, scale), rtol=1e-5, atol=1e-6)
    (b, heads, n, d), m = q.shape, k.shape[2]
    assert fake.shapes == [((b, n, heads, d), (b, m, heads, d), (b, m, heads, d))]
    assert fake.scales == [d**-0.5 if scale is None else scale]


@given(st.none() | runnable, st.none() | runnable, st.none() | runnable)
def test_argument_over_context_over_environment_over_automatic(
    argument: str | None, context: str | None, environment: str | None
) -> None:
    asked = [(argument, "argument"), (context, "context"), (environment, "environment")]
    name, reason = next(((n, w) for n, w in asked if n is not None), ("sdpa", "xformers has no"))
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        if environment is not None:
            patch.setenv(ENVIRONMENT, environment)
        if context is not None:
            stack.enter_context(attention_backend(context))
        choice = choose_backend("cpu", torch.float32, 8, backend=argument)
    assert choice.name == name
    assert reason in choice.reason
    assert choose_backend("cpu", torch.float32, 8).name == "sdpa"


@given(st.lists(runnable, min_size=1, max_size=4))
def test_contexts_nest_and_end(names: list[str]) -> None:
    def chosen() -> str:
        return choose_backend("cpu", torch.float32, 8).name

    with ExitStack() as stack:
        for name in names:
            stack.enter_context(attention_backend(name))
            assert chosen() == name
    assert chosen() == "sdpa"
    assert "xformers has no cpu" in choose_backend("cpu", torch.float32, 8).reason


@given(st.text("abcdef", min_size=1, max_size=8), st.sampled_from(["argument", "context", "env"]))
def test_unknown_names_are_refused_wherever_they_stand(name: str, where: str) -> None:
    def choose() -> None:
        context = attention_backend(name) if where == "context" else nullcontext()
        with context:
            choose_backend("cpu", torch.float32, 8, backend=name if where == "argument" else None)

    with pytest.MonkeyPatch.context() as patch:
        if where == "env":
            patch.setenv(ENVIRONMENT, name)
        with pytest.raises(UsageError) as caught:
            choose()
    assert f"no attention backend named {name!r}" in str(caught.value)
    assert "Available: math, sdpa, xformers" in str(caught.value)


def test_a_near_miss_is_named() -> None:
    with pytest.raises(UsageError, match="Did you mean 'sdpa'"):
        choose_backend("cpu", torch.float32, 8, backend="spda")


def test_xformers_asked_for_where_it_cannot_run() -> None:
    q = torch.zeros(1, 1, 2, 4)
    with pytest.raises(UsageError, match=r"the backend argument.* cannot run here.*no cpu kernels"):
        attention(q, q, q, backend="xformers")
    with (
        attention_backend("xformers"),
        pytest.raises(UsageError, match="the attention_backend context"),
    ):
        attention(q, q, q)
