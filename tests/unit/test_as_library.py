"""Models as modules in somebody else's program: copied, moved, compiled, mapped, and sent to processes."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, Dataset

import rpiae
from rpiae.core.errors import UsageError
from rpiae.core.model.attention import attention_backend
from rpiae.core.model.generator_folders import load_generator_model, save_generator
from rpiae.core.model.tokenizer import RPiAE
from rpiae.sampling import load_generator
from tests.toy_generators import SHAPE, toy_generator, toy_tokenizer, write_run
from tests.toys import BRIDGES, DECODERS, ENCODERS

#: Every built-in part once, and a tokenizer of clips.
COMBINATIONS = [
    *((encoder, "identity", "vit") for encoder in ENCODERS),
    *(("vit", bridge, "vit") for bridge in BRIDGES),
    *(("vit", "vb4", decoder) for decoder in DECODERS),
    ("timm", "tvb4x4", "video-vit"),
]
EVERY_PART = pytest.mark.parametrize("parts", COMBINATIONS, ids="-".join)


def tokenizer(encoder: str = "vit", bridge: str = "vb4", decoder: str = "vit") -> RPiAE:
    return rpiae.build(
        encoder=ENCODERS[encoder], bridge=BRIDGES[bridge], decoder=DECODERS[decoder],
        pretrained=False,
    ).eval()  # fmt: skip


def images(*shape: int) -> Tensor:
    return torch.rand(*(shape or (2, 3, 36, 28)), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def same(one: nn.Module, two: nn.Module) -> bool:
    """Whether two models make the same pictures and the same clips."""
    clip = images(1, 3, 5, 32, 32)
    return torch.equal(one(images()), two(images())) and torch.equal(one(clip), two(clip))


def changed(model: RPiAE) -> RPiAE:
    """With weights and statistics of its own, so that what is not copied shows."""
    draws = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=draws)
    width, channels = model.encoder.width, model.bridge.latent_channels
    model.register_buffer("feature_mean", torch.rand(width, 1, 1, generator=draws))
    model.register_buffer("feature_var", torch.rand(width, 1, 1, generator=draws) + 0.5)
    model.register_buffer("latent_mean", torch.rand(channels, generator=draws))
    model.register_buffer("latent_std", torch.rand(channels, generator=draws) + 0.5)
    return model


# --- copies ------------------------------------------------------------------------------------


def through_torch_save(model: nn.Module) -> Any:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), through_torch_save],
    ids=["deepcopy", "pickle", "torch.save"],
)
@EVERY_PART
def test_a_copy_is_the_same_and_its_own(
    parts: tuple[str, str, str], copied: Callable[[Any], Any], tmp_path: Path
) -> None:
    model = changed(tokenizer(*parts))
    other = copied(model)
    assert same(model, other)
    assert other.config == model.config
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert not same(model, other)
    assert same(model, rpiae.load(rpiae.save(copied(model), tmp_path / "saved")))


@EVERY_PART
def test_weights_go_through_a_state_dict(parts: tuple[str, str, str]) -> None:
    model, other = tokenizer(*parts), tokenizer(*parts)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    found = other.load_state_dict(torch.load(buffer))
    assert (found.missing_keys, found.unexpected_keys) == ([], [])
    assert same(model, other)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))],
    ids=["deepcopy", "pickle"],
)
def test_a_copied_generator_makes_the_same_samples(
    copied: Callable[[Any], Any], tmp_path: Path
) -> None:
    loaded = load_generator(write_run(tmp_path / "run"))
    samples = loaded.sample(["cat", "ship"], steps=2, guidance=2.0)
    other = copied(loaded)
    assert torch.equal(other.sample(["cat", "ship"], steps=2, guidance=2.0), samples)
    copied_model = copied(loaded.model)
    assert copied_model.facts == loaded.model.facts
    for parameter in copied_model.parameters():
        parameter.data.zero_()
    assert torch.equal(loaded.sample(["cat", "ship"], steps=2, guidance=2.0), samples)


# --- types, layouts, contexts ------------------------------------------------------------------

#: How far values may be from those of fp32: roundings of 8 and 11 bits through a few layers.
NARROW = {torch.bfloat16: 0.08, torch.float16: 0.01}


@pytest.mark.parametrize("dtype", NARROW)
@EVERY_PART
def test_half_precision_encodes_and_decodes_clips(
    parts: tuple[str, str, str], dtype: torch.dtype
) -> None:
    model, clip = tokenizer(*parts).requires_grad_(False), images(1, 3, 5, 32, 32)
    narrow = copy.deepcopy(model)
    narrow = narrow.half() if dtype == torch.float16 else narrow.to(dtype)
    latent = narrow.encode(clip.to(dtype)).mode()
    made = narrow.decode(latent, size=clip.shape[2:])
    assert made.dtype == dtype
    wanted = model.decode(model.encode(clip).mode(), size=clip.shape[2:])
    assert (made.float() - wanted).abs().max() <= NARROW[dtype] * wanted.abs().max().clamp_min(1)


@pytest.mark.parametrize("dtype", [*NARROW, torch.float64])
def test_generators_of_another_precision(dtype: torch.dtype) -> None:
    model = toy_generator(toy_tokenizer())
    other = copy.deepcopy(model).to(dtype)
    latents, time = torch.randn(3, *SHAPE), torch.tensor([0.1, 0.5, 0.9])
    wanted = model.velocity(latents, time, torch.tensor([0, 1, 3]))
    found = other.velocity(latents, time, torch.tensor([0, 1, 3]))
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    bound = NARROW.get(dtype, 1e-5)
    assert (found - wanted).abs().max() <= bound * wanted.abs().max().clamp_min(1)


@EVERY_PART
def test_channels_last_changes_rounding_at_most(parts: tuple[str, str, str]) -> None:
    model = tokenizer(*parts)
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    with torch.no_grad():
        found = other(images().to(memory_format=torch.channels_last))
        torch.testing.assert_close(found, model(images()), atol=1e-5, rtol=0)


@EVERY_PART
def test_inference_mode(parts: tuple[str, str, str]) -> None:
    with torch.inference_mode():
        model = tokenizer(*parts)
        found = model(images())
        assert torch.equal(model(images()), found)  # caches are made in one mode and used in others
    assert found.is_inference()
    with torch.no_grad():
        assert torch.equal(model(images()), found)
    x = images().requires_grad_()
    other = tokenizer(*parts)
    with torch.inference_mode():
        other(images())
    other.decode(other.encode(x).mode()).sum().backward()
    assert x.grad is not None


def test_weights_are_drawn_alike_in_any_context() -> None:
    with torch.device("meta"):
        model = tokenizer()
    assert model.device.type == "cpu"
    assert same(model, tokenizer())


# --- gradients and transforms ------------------------------------------------------------------


@EVERY_PART
def test_gradients_pass_a_frozen_tokenizer(parts: tuple[str, str, str]) -> None:
    model = tokenizer(*parts).requires_grad_(False)
    x = images().requires_grad_()
    latent = model.encode(x).mode()
    model.decode(latent, size=(36, 28)).square().mean().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.flatten(1).abs().sum(dim=1).gt(0).all()
    assert all(p.grad is None for p in model.parameters())


@EVERY_PART
def test_a_functional_call(parts: tuple[str, str, str]) -> None:
    model, other = tokenizer(*parts), changed(tokenizer(*parts))
    with torch.no_grad():
        given = dict(other.named_parameters())
        buffers = dict(other.named_buffers())
        for name in ("feature_mean", "feature_var", "latent_mean", "latent_std"):
            model.register_buffer(name, torch.zeros_like(buffers[name]))
        found = torch.func.functional_call(model, (given, buffers), (images(),))
        assert torch.equal(found, other(images()))


def test_gradients_of_a_functional_call() -> None:
    model = tokenizer()
    given = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        made: Tensor = torch.func.functional_call(model, parameters, (images(),))
        return made.square().mean()

    found = torch.func.grad(loss)(given)
    model(images()).square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            found[name],
            torch.zeros(()).expand_as(parameter) if parameter.grad is None else parameter.grad,
        )


@EVERY_PART
def test_a_model_is_mapped_over_images(parts: tuple[str, str, str]) -> None:
    model = tokenizer(*parts).requires_grad_(False)
    with attention_backend("math"):  # torch has no rule for mapping sdpa, and says so
        found = torch.func.vmap(lambda image: model(image[None])[0])(images())
        torch.testing.assert_close(found, model(images()), atol=1e-5, rtol=0)


class LowRank(nn.Module):
    """W + A·B, with A = 0 at the start."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(weight.shape[0], 2))
        self.b = nn.Parameter(torch.ones(2, weight.shape[1]))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.a @ self.b


def adapted(model: RPiAE) -> RPiAE:
    for module in [m for m in model.requires_grad_(False).modules() if isinstance(m, nn.Linear)]:
        parametrize.register_parametrization(module, "weight", LowRank(module.weight))
    return model


@EVERY_PART
def test_low_rank_adapters_learn(parts: tuple[str, str, str]) -> None:
    model = adapted(tokenizer(*parts))
    wanted = tokenizer(*parts)(images())
    made = model.decode(model.encode(images()).mode(), size=(36, 28))
    assert torch.equal(made.clamp(0, 1), wanted)
    (made - 0.3).square().mean().backward()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all(".parametrizations.weight." in name for name in trained)
    assert all(model.get_parameter(name).grad is not None for name in trained)


# --- compiled ----------------------------------------------------------------------------------


@pytest.fixture
def fresh() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_many_sizes_are_compiled_few_times(fresh: None) -> None:
    graphs = []

    def counted(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model = tokenizer().requires_grad_(False)
    compiled = torch.compile(model, backend=counted)
    for side in range(16, 120, 8):
        x = images(2, 3, side, side + 12)
        assert torch.equal(compiled(x), model(x))
    assert len(graphs) <= 4


def test_a_compiled_tokenizer_is_saved_as_itself(fresh: None, tmp_path: Path) -> None:
    model = changed(tokenizer())
    compiled: Any = torch.compile(model, backend="eager")
    assert same(compiled, model)
    assert same(model, rpiae.load(rpiae.save(compiled, tmp_path / "whole")))
    model.encoder.compile(backend="eager")  # type: ignore[attr-defined]  # parts are modules
    assert same(model, rpiae.load(rpiae.save(model, tmp_path / "in place")))


def test_a_compiled_generator_is_saved_as_itself(fresh: None, tmp_path: Path) -> None:
    model = toy_generator(toy_tokenizer())
    compiled: Any = torch.compile(model, backend="eager")
    loaded = load_generator_model(save_generator(compiled, tmp_path / "generator"))
    for name, values in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], values)


def test_a_tokenizer_with_other_weights_than_its_config_is_not_saved(tmp_path: Path) -> None:
    wrapped = tokenizer()
    wrapped.encoder = torch.compile(wrapped.encoder)  # type: ignore[assignment]
    for model in (wrapped, adapted(tokenizer())):
        with pytest.raises(UsageError, match=r"other weights than its parts' configs .* such as "):
            rpiae.save(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- processes ---------------------------------------------------------------------------------


class Encoded(Dataset[tuple[Tensor, int]]):
    """Latents that a worker makes with a model of its parent."""

    def __init__(self, model: RPiAE) -> None:
        self.model = model.requires_grad_(False)

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.model.encode(images(3, 3, 32, 32)[index : index + 1]).mode()[0], index


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_model_in_workers_after_its_parent_used_it(start: str) -> None:
    model = changed(tokenizer())
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # so that the parent has threads that a fork loses
    try:
        wanted = model.requires_grad_(False).encode(images(3, 3, 32, 32)).mode()
        loader = DataLoader(
            Encoded(model), batch_size=3, num_workers=1, multiprocessing_context=start, timeout=300
        )
        ((found, order),) = loader
    finally:
        torch.set_num_threads(threads)
    assert order.tolist() == [0, 1, 2]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def _sent(pipe: Any, model: RPiAE) -> None:
    torch.set_num_threads(1)
    pipe.send(model(images()).tolist())


def test_a_forked_process_that_asks_for_one_thread() -> None:
    model = tokenizer().requires_grad_(False)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        wanted = model(images(2, 3, 36, 28))
        context = multiprocessing.get_context("fork")
        here, there = context.Pipe()
        process = context.Process(target=_sent, args=(there, model))
        process.start()
        assert here.poll(120)
        found = torch.tensor(here.recv())
        process.join()
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


#: What belongs to the process, before and after; the libraries that rpiae stands on come first.
_STATE = """
import importlib, logging, os, random, signal, sys, threading, warnings
import numpy, torch
for name in ("accelerate", "matplotlib", "requests", "scipy.stats", "sklearn.decomposition", "sympy", "timm",
             "torch._dynamo", "torchmetrics", "torch.utils.tensorboard", "torchvision"):
    importlib.import_module(name)

def state():
    root, own = logging.getLogger(), logging.getLogger("rpiae")
    return {
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "running": threading.active_count(),
        "defaults": (torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()),
        "modes": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark,
                  torch.get_float32_matmul_precision()),
        "draws": (torch.get_rng_state().tolist(), numpy.random.get_state()[1].tolist(),
                  random.getstate()),
        "filters": list(map(str, warnings.filters)),
        "logging": (root.level, list(root.handlers), own.level, list(own.handlers),
                    root.manager.disable),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
        "hooks": (sys.excepthook, sys.displayhook),
        "system": (list(sys.path), os.getcwd(), dict(os.environ)),
    }

before = state()
"""


@pytest.mark.parametrize(
    "code",
    [
        "import rpiae",
        "import rpiae, rpiae.plugin\n"
        "for module in (rpiae, rpiae.plugin):\n"
        "    for name in module.__all__: getattr(module, name)",
        "import rpiae\n"
        "x = torch.zeros(1, 3, 32, 32)\n"
        "model = rpiae.build(encoder='tiny', bridge='vb4', decoder='vit-t')\n"
        "model = rpiae.load(rpiae.save(model, sys.argv[1]))\n"
        "model(x)",
    ],
    ids=["import", "every name", "use"],
)
def test_a_process_is_left_as_it_was(code: str, tmp_path: Path) -> None:
    check = (
        "\nafter = state()\nassert after == before, [k for k in before if before[k] != after[k]]"
    )
    done = subprocess.run(
        [sys.executable, "-c", _STATE + code + check, str(tmp_path / "saved")],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
