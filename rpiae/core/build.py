"""Resolved configs to modules, also on the meta device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from rpiae.core.config import BridgeConfig, DecoderConfig, EncoderConfig, PartConfig, Tree
from rpiae.core.contracts import Encoder
from rpiae.core.entries import THIS_PROCESS
from rpiae.core.errors import (
    CheckpointError,
    ConfigError,
    RunError,
    UnknownNameError,
    UsageError,
)
from rpiae.core.importing import import_hint
from rpiae.core.randomness import key
from rpiae.core.recipe import ROLES
from rpiae.core.resolve import ResolvedTokenizer, part_config, resolve_tokenizer
from rpiae.core.saved import SavedTokenizer, TensorFacts
from rpiae.core.tokenizer import RPiAE, check_architecture, load_state


def build_tokenizer(
    resolved: ResolvedTokenizer,
    *,
    device: torch.device | str = "cpu",
    pretrained: bool = False,
    seed: int | None = None,
    trained_size: int = 0,
) -> RPiAE:
    """Construct a tokenizer.

    Args:
        resolved: its configs.
        device: where; ``"meta"`` gives shapes without memory.
        pretrained: whether the encoder takes its pivot's weights (if its config wants them).
        seed: makes the initialisation of each part a function of it and of the part alone, so that
            swapping one leaves the others as they are; the global generator is left alone.
        trained_size: side of the training crops in pixels.

    Raises:
        FetchError: if pretrained weights cannot be had.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta" if device == "meta" else "cpu"):
        model = RPiAE(
            encoder=_part("encoder", resolved.encoder, seed),
            bridge=_part("bridge", resolved.bridge, seed),
            decoder=_part("decoder", resolved.decoder, seed),
            config=resolved,
            trained_size=trained_size,
        )
    _check_facts(model.encoder, resolved)
    if device == "meta":
        return model
    if pretrained and resolved.encoder.pretrained:
        resolved.encoder.load_pretrained(model.roles["encoder"])
    return model.to(device)


def _part(role: str, config: PartConfig, seed: int | None) -> Any:
    if seed is not None:
        torch.manual_seed(key(seed, "initialisation", role))
    try:
        return config.build()
    except UsageError:
        raise
    except ValueError as error:
        raise ConfigError(role, [f"{config.label}: {error}"]) from None


def _check_facts(encoder: Encoder, resolved: ResolvedTokenizer) -> None:
    """Whether the encoder is what the other parts were told it is."""
    facts, label = resolved.encoder_facts, resolved.encoder.label
    wrong = [
        f"encoder.{name}: {label} says {getattr(facts, name)}, the model it builds has "
        f"{getattr(encoder, name)}. Set it to that, or take another preset"
        for name in ("width", "patch", "num_blocks")
        if getattr(facts, name) != getattr(encoder, name)
    ]
    if wrong:
        raise ConfigError("the encoder", wrong)


def build(
    *,
    encoder: str | Tree | EncoderConfig,
    bridge: str | Tree | BridgeConfig,
    decoder: str | Tree | DecoderConfig,
    pretrained: bool = True,
    seed: int = 0,
) -> RPiAE:
    """An untrained RPiAE from names, tables or configs; wired fields are filled in.

    Args:
        encoder, bridge, decoder: the parts.
        pretrained: whether the encoder starts from its pivot's weights.
        seed: of the initialisation.

    Raises:
        UnknownNameError: if nobody registered a name.
        ConfigError: if values do not fit, or the parts do not fit each other.
        FetchError: if the pivot's weights cannot be had.
    """
    return build_tokenizer(_resolved(encoder, bridge, decoder), pretrained=pretrained, seed=seed)


#: What a part may raise when it is built from values that make no sense to it.
_UNFIT = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip

#: Dtypes that weights may have, by their names in safetensors files.
_FLOATS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip

#: Optional buffers of a tokenizer, and what they are measured over.
_NORMS = {
    "feature_mean": "feature_norm", "feature_var": "feature_norm",
    "latent_mean": "latent_norm", "latent_std": "latent_norm",
}  # fmt: skip

#: Side of training crops in pixels, at most.
_LARGEST_SIZE = 1 << 16


def load_saved(saved: SavedTokenizer) -> RPiAE:
    """A saved tokenizer as a model on CPU, in the dtypes of its file.

    What the file's header says is compared with the model's shapes before any memory is taken.

    Raises:
        CheckpointError: if a part's plugin is missing, its config does not fit, or the file holds
            other tensors than such a model has.
    """
    source = str(saved.folder)
    resolved, trained_size = _saved_parts(saved.config, source)
    with _fitting(source):
        shapes = build_tokenizer(resolved, device="meta", trained_size=trained_size)
    _check_header(shapes, resolved, saved.tensors, source)
    with _fitting(source):
        model = build_tokenizer(resolved, trained_size=trained_size)
    for role, dtype in _dtypes(shapes, saved.tensors, source).items():
        model.roles[role].to(dtype)
    state = saved.read()
    _check_norms(state, source)
    for name in _NORMS:
        if name in state:
            model.register_buffer(name, state[name])
    load_state(model, state, source=source, exact=True)
    return model


def _saved_parts(saved: Mapping[str, Any], source: str) -> tuple[ResolvedTokenizer, int]:
    """The parts of a saved config, and the side of its training crops."""
    sources, versions, modules = (
        _texts(saved, name, source) for name in ("sources", "versions", "modules")
    )
    parts = {}
    for role in ROLES:
        given = saved.get(role)
        if not isinstance(given, dict):
            problem = f"its {role} is no table" if role in saved else f"it has no {role}"
            raise CheckpointError(f"{source}: config.json: {problem}")
        try:
            with _fitting(source):
                parts[role] = part_config(f"{role}s", given)
        except UnknownNameError as error:
            distribution = sources.get(role, "another distribution")
            if distribution == THIS_PROCESS:
                raise CheckpointError(
                    f"{source} was saved with {role} {given.get('name')!r}, which is not known here: "
                    f"{import_hint([modules.get(role, '')])}"
                ) from None
            raise CheckpointError(
                f"{source} was saved with {role} {given.get('name')!r} of {distribution} "
                f"{versions.get(distribution, '')}, which is not installed here: "
                f"pip install {distribution} ({error})"
            ) from None
    size = saved.get("trained_size", 0)
    if type(size) is not int or not 0 <= size <= _LARGEST_SIZE:
        raise CheckpointError(
            f"{source}: config.json: trained_size is {size!r:.40}, not a number of pixels from 0 to "
            f"{_LARGEST_SIZE}"
        )
    with _fitting(source):
        return _resolved(*(parts[role] for role in ROLES)), size


def _texts(saved: Mapping[str, Any], name: str, source: str) -> dict[str, str]:
    given = saved.get(name, {})
    if not isinstance(given, dict) or not all(isinstance(text, str) for text in given.values()):
        raise CheckpointError(f"{source}: config.json: its {name} are no table of texts")
    return given


@contextlib.contextmanager
def _fitting(source: str) -> Iterator[None]:
    """Where values of a file are given to parts: what these raise is about the file."""
    try:
        yield
    except (UnknownNameError, RunError):
        raise
    except UsageError as error:
        raise CheckpointError(f"{source} does not fit this version of its parts: {error}") from None
    except _UNFIT as error:
        raise CheckpointError(
            f"{source}: config.json describes no model that can be built: "
            f"{type(error).__name__}: {str(error)[:200]}"
        ) from error


def _check_header(
    model: RPiAE, resolved: ResolvedTokenizer, tensors: Mapping[str, TensorFacts], source: str
) -> None:
    """Whether a file's tensors are those of a model without memory."""
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: facts.shape for name, facts in tensors.items() if name not in _NORMS}
    check_architecture(
        source,
        missing=sorted(own.keys() - found.keys()),
        extra=sorted(found.keys() - own.keys()),
        wrong={
            n: (found[n], own[n]) for n in sorted(own.keys() & found.keys()) if found[n] != own[n]
        },
    )
    for name in sorted(_NORMS.keys() & tensors.keys()):
        twin = next(n for n, norm in _NORMS.items() if norm == _NORMS[name] and n != name)
        dtype, shape = tensors[name]
        if _NORMS[name] == "latent_norm":
            wanted, fits = f"({resolved.bridge_facts.latent_channels},)", len(shape) == 1
            fits = fits and shape[0] == resolved.bridge_facts.latent_channels
        else:
            width = resolved.encoder_facts.width
            wanted, fits = f"({width}, h, w)", len(shape) == 3 and shape[0] == width
        if not fits or dtype not in _FLOATS or 0 in shape:
            raise CheckpointError(f"{source}: {name} is {dtype} {shape}, not of floats {wanted}")
        if twin not in tensors or tensors[twin].shape != shape:
            raise CheckpointError(
                f"{source}: {name} is {shape} and there is no {twin} of that shape"
            )


def _dtypes(
    model: RPiAE, tensors: Mapping[str, TensorFacts], source: str
) -> dict[str, torch.dtype]:
    """Roles that were saved in another floating dtype than they are built in, with that dtype."""
    found = {}
    for role, part in model.roles.items():
        floats = {
            f"{role}.{n}": t.dtype for n, t in part.state_dict().items() if t.is_floating_point()
        }
        given = {name: tensors[name].dtype for name in floats}
        if all(_FLOATS.get(dtype) == floats[name] for name, dtype in given.items()):
            continue
        first = next(iter(given.values()))
        for name, dtype in given.items():
            if dtype not in _FLOATS:
                raise CheckpointError(f"{source}: {name} is {dtype}, which is no dtype of weights")
            if dtype != first:
                raise CheckpointError(
                    f"{source}: {name} is {dtype} and others of the {role} are {first}: a part has "
                    "one dtype"
                )
        found[role] = _FLOATS[first]
    return found


def _check_norms(state: Mapping[str, Tensor], source: str) -> None:
    """Whether features and latents can be normalised."""
    for name in sorted(_NORMS.keys() & state.keys()):
        tensor = state[name]
        if not tensor.isfinite().all():
            raise CheckpointError(f"{source}: {name} holds numbers that are not finite")
        if (name == "latent_std" and tensor.min() <= 0) or (
            name == "feature_var" and tensor.min() < 0
        ):
            raise CheckpointError(f"{source}: {name} is not positive ({tensor.min().item():g})")


def _resolved(encoder: Any, bridge: Any, decoder: Any) -> ResolvedTokenizer:
    first, second, third = (
        part_config(family, given)
        for family, given in (("encoders", encoder), ("bridges", bridge), ("decoders", decoder))
    )
    assert isinstance(first, EncoderConfig)
    assert isinstance(second, BridgeConfig)
    assert isinstance(third, DecoderConfig)
    return resolve_tokenizer(first, second, third)
