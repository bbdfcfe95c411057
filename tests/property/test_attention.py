"""Every attention backend against the plain one, and the order in which they are chosen."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rpiae.core.errors import UsageError
from rpiae.core.model import attention as module
from rpiae.core.model import folding
from rpiae.core.model.attention import (
    ENVIRONMENT,
    Causal,
    Window,
    attention,
    attention_backend,
    choose_backend,
)

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


class LowerTriangularMask:
    """Stands for xformers' own mask, which is no tensor."""


class FakeXformers:
    """``xformers.ops`` on CPU: takes (b, n, heads, d), wants a scale, remembers its calls.

    A mask is a tensor of the scores' shape and the queries' dtype whose rows are aligned, or the
    triangle.
    """

    def __init__(self) -> None:
        self.shapes: list[tuple[tuple[int, ...], ...]] = []
        self.scales: list[float] = []
        self.biases: list[Any] = []

    def memory_efficient_attention(
        self, q: Tensor, k: Tensor, v: Tensor, *, attn_bias: Any, scale: float
    ) -> Tensor:
        self.shapes.append((tuple(q.shape), tuple(k.shape), tuple(v.shape)))
        self.scales.append(scale)
        self.biases.append(attn_bias)
        scores = torch.einsum("bnhd,bmhd->bhnm", q.float(), k.float()) * scale
        if isinstance(attn_bias, LowerTriangularMask):
            scores = scores + torch.full_like(scores, -torch.inf).triu(1)
        elif attn_bias is not None:
            assert attn_bias.shape == scores.shape
            assert attn_bias.dtype == q.dtype
            assert attn_bias.stride(-2) % 8 == 0
            assert attn_bias.stride(-1) == 1
            scores = scores + attn_bias
        weights = scores.softmax(dim=-1).to(v.dtype)
        return torch.einsum("bhnm,bmhd->bnhd", weights, v)

    @contextmanager
    def installed(self) -> Iterator[FakeXformers]:
        package, ops = ModuleType("xformers"), ModuleType("xformers.ops")
        vars(ops)["memory_efficient_attention"] = self.memory_efficient_attention
        vars(ops)["LowerTriangularMask"] = LowerTriangularMask
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "xformers", package)
            patch.setitem(sys.modules, "xformers.ops", ops)
            patch.setattr(module, "_xformers_problem", lambda *_: None)
            yield self


@given(queries_keys_values(), scales)
def test_xformers_gets_its_own_layout_and_the_scale(
    qkv: tuple[Tensor, Tensor, Tensor], scale: float | None
) -> None:
    q, k, v = qkv
    with FakeXformers().installed() as fake:
        found = attention(q, k, v, scale=scale, backend="xformers")
    torch.testing.assert_close(found, _written_out(q, k, v, scale), rtol=1e-5, atol=1e-6)
    (b, heads, n, d), m = q.shape, k.shape[2]
    assert fake.shapes == [((b, n, heads, d), (b, m, heads, d), (b, m, heads, d))]
    assert fake.scales == [d**-0.5 if scale is None else scale]
    assert fake.biases == [None]


masks = st.one_of(
    st.builds(Causal, frame=st.integers(1, 6)),
    st.builds(Window, frame=st.integers(1, 6), last=st.integers(1, 6)),
)


@st.composite
def masked_calls(draw: st.DrawFn) -> tuple[tuple[Tensor, Tensor, Tensor], Causal]:
    m = draw(st.integers(1, 14))
    b, heads, d, n = draw(sizes), draw(sizes), draw(sizes), draw(st.integers(1, m))
    generator = torch.Generator().manual_seed(draw(seeds))
    k, v = torch.randn(2, b, heads, m, d, generator=generator)
    return (torch.randn(b, heads, n, d, generator=generator), k, v), draw(masks)


def _masked(q: Tensor, k: Tensor, v: Tensor, mask: Causal) -> Tensor:
    """Query by query: a softmax over the keys that it sees."""
    n, m = q.shape[2], k.shape[2]
    found = torch.empty(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    for row in range(n):
        frame = (m - n + row) // mask.frame
        last = mask.last if isinstance(mask, Window) else frame + 1
        seen = [at for at in range(m) if frame - last < at // mask.frame <= frame]
        found[:, :, row : row + 1] = _written_out(
            q[:, :, row : row + 1], k[:, :, seen], v[:, :, seen], None
        )
    return found


@given(masked_calls(), st.sampled_from(["math", "sdpa", "xformers"]))
def test_masks_hide_what_comes_later_and_what_is_long_ago(
    call: tuple[tuple[Tensor, Tensor, Tensor], Causal], backend: str
) -> None:
    qkv, mask = call
    with FakeXformers().installed():
        found = attention(*qkv, mask=mask, backend=backend)
    torch.testing.assert_close(found, _masked(*qkv, mask), rtol=1e-5, atol=1e-6)


@given(
    masked_calls(),
    st.sampled_from(["sdpa", "xformers"]),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_masks_have_the_same_gradients(
    call: tuple[tuple[Tensor, Tensor, Tensor], Causal],
    backend: str,
    dtype: torch.dtype,
) -> None:
    qkv, mask = call

    def run(name: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [t.to(dtype).requires_grad_() for t in qkv]
        out = attention(*leaves, mask=mask, backend=name)
        assert out.dtype == dtype
        return out.detach(), *torch.autograd.grad(out.square().sum(), leaves)

    close = {torch.float32: (1e-4, 1e-5), torch.bfloat16: (0.05, 0.1)}[dtype]
    wanted = run("math", torch.float32)
    with FakeXformers().installed():
        results = run(backend, dtype)
    for found, exact in zip(results, wanted, strict=True):
        assert found.isfinite().all()
        torch.testing.assert_close(found.float(), exact, rtol=close[0], atol=close[1])


@given(masked_calls(), st.integers(0, 13), runnable)
def test_a_key_changes_the_queries_that_see_it_and_no_other(
    call: tuple[tuple[Tensor, Tensor, Tensor], Causal], at: int, backend: str
) -> None:
    (q, k, v), mask = call
    at %= k.shape[2]
    other = v.clone()
    other[:, :, at] += 100
    before, after = (attention(q, k, x, mask=mask, backend=backend) for x in (v, other))
    changed = (before != after).any(dim=(0, 1, 3))
    frames = torch.arange(k.shape[2] - q.shape[2], k.shape[2]) // mask.frame
    ago = frames - at // mask.frame
    last = mask.last if isinstance(mask, Window) else len(k[0, 0])
    assert torch.equal(changed, (ago >= 0) & (ago < last))


@given(masked_calls(), st.data())
def test_the_last_queries_alone_give_what_all_of_them_give(
    call: tuple[tuple[Tensor, Tensor, Tensor], Causal], data: st.DataObject
) -> None:
    (_, k, v), mask = call
    whole = attention(k, k, v, mask=mask)
    n = data.draw(st.integers(1, k.shape[2]))
    torch.testing.assert_close(attention(k[:, :, -n:], k, v, mask=mask), whole[:, :, -n:])


def test_xformers_gets_a_triangle_by_name_and_no_mask_where_nothing_is_hidden() -> None:
    def given_to_xformers(mask: Causal, n: int, m: int) -> Any:
        q, k = torch.randn(1, 1, n, 2), torch.randn(1, 1, m, 2)
        with FakeXformers().installed() as fake:
            attention(q, k, k, mask=mask, backend="xformers")
        [bias] = fake.biases
        return bias

    assert isinstance(given_to_xformers(Causal(), 6, 6), LowerTriangularMask)
    assert isinstance(given_to_xformers(Window(last=6), 6, 6), LowerTriangularMask)
    for mask in (Causal(frame=6), Causal(frame=9), Window(last=1, frame=6)):
        assert given_to_xformers(mask, 6, 6) is None
    assert given_to_xformers(Causal(), 1, 6) is None
    assert given_to_xformers(Causal(frame=2), 2, 6) is None
    for mask, n in ((Causal(), 5), (Causal(frame=2), 6), (Window(last=5), 6), (Window(last=2), 1)):
        assert isinstance(given_to_xformers(mask, n, 6), Tensor)


def test_sdpa_gets_a_triangle_by_name_and_no_mask_where_nothing_is_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, Any]] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def watched(*qkv: Tensor, **keywords: Any) -> Tensor:
        asked.append(keywords)
        return real(*qkv, **keywords)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    q = torch.randn(1, 1, 6, 2)
    for mask in (Causal(), Causal(frame=6), Causal(frame=2)):
        attention(q, q, q, mask=mask, backend="sdpa")
    assert [keywords.get("is_causal", False) for keywords in asked] == [True, False, False]
    assert ["attn_mask" in keywords for keywords in asked] == [False, False, True]


def test_a_mask_is_built_once_for_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple[int, int]] = []
    seen = module._seen

    @functools.wraps(seen)
    def counted(mask: Causal, n: int, m: int, device: torch.device) -> Tensor:
        built.append((n, m))
        return seen(mask, n, m, device)

    monkeypatch.setattr(module, "_seen", counted)
    for _ in range(3):
        for n in (4, 6):
            q, k = torch.randn(2, 1, n, 2), torch.randn(2, 1, 6, 2)
            for backend in ("math", "sdpa"):
                attention(q, k, k, mask=Causal(frame=2), backend=backend)
    assert built == [(4, 6), (6, 6)]


def test_a_mask_of_inference_serves_training() -> None:
    mask = Window(last=2, frame=3)
    with torch.inference_mode():
        q = torch.randn(1, 1, 12, 2)
        attention(q, q, q, mask=mask, backend="math")
    leaf = torch.randn(1, 1, 12, 2, requires_grad=True)
    attention(leaf, leaf, leaf, mask=mask, backend="math").sum().backward()
    assert leaf.grad is not None


def test_masks_that_cannot_be_are_refused() -> None:
    q, k = torch.randn(1, 1, 3, 2), torch.randn(1, 1, 2, 2)
    with pytest.raises(UsageError, match="3 queries do not fit 2 keys"):
        attention(q, k, k, mask=Causal())
    with pytest.raises(ValueError, match="'frame' must be >= 1"):
        Causal(frame=0)
    with pytest.raises(ValueError, match="'last' must be >= 1"):
        Window(last=0)


@given(
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(1, 12),
    st.sampled_from(["math", "sdpa", "xformers"]),
    st.none() | masks,
)
def test_no_call_has_more_entries_than_kernels_take(
    b: int, heads: int, most: int, backend: str, mask: Causal | None
) -> None:
    q, k, v = torch.randn(3, b, heads, 5, 2)
    whole = attention(q, k, v, mask=mask, backend="math")
    with FakeXformers().installed() as fake, pytest.MonkeyPatch.context() as patch:
        patch.setattr(folding, "MOST_FOLDED", most)
        chunked = attention(q, k, v, mask=mask, backend=backend)
    torch.testing.assert_close(chunked, whole)
    for shape, _, _ in fake.shapes:
        assert shape[0] == 1 or shape[0] * shape[2] <= most


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
