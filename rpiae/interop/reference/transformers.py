"""Encoders in transformers' layouts: as configs and weights of ``TimmEncoder``, and back.

Four classes are known: Dinov2WithRegistersModel, Dinov2Model, ViTMAEModel and the vision tower of
SiglipModel; ``rpiae.interop.reference.kinds`` has what is published of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from torch import Tensor, nn

from rpiae.core.config.parts import EncoderConfig
from rpiae.core.errors import CheckpointError, UsageError
from rpiae.core.model.adapters import is_for_registers
from rpiae.core.model.layouts import FOREIGN_REGISTERS, State, encoder_layout
from rpiae.core.model.resolve import part_config
from rpiae.core.runtime.names import printable, shown
from rpiae.core.runtime.weights import Shapes, Signature, read_weights, shapes
from rpiae.interop.reference.facts import Facts, Table, Told, find_documents
from rpiae.interop.reference.kinds import PLAIN, REGISTERS, SIGLIP, VIT_MAE, Kind
from rpiae.interop.reference.names import with_long_names
from rpiae.interop.reference.shapes import (
    PartShapes,
    Place,
    below,
    check_values,
    check_whole,
    ratio,
)

if TYPE_CHECKING:
    from rpiae.encoders.timm import TimmEncoder

#: transformers' names of activations → timm's; DINOv2, ViT and SigLIP are trained with one of them.
ACTIVATIONS = {
    "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu", "relu": "relu", "silu": "silu",
}  # fmt: skip

#: What every file of an encoder has, for the reader of foreign weights.
SIGNATURES: tuple[Signature, ...] = (
    ("embeddings.patch_embeddings.projection.weight",),
    ("embeddings.patch_embedding.weight", "embeddings.position_embedding.weight"),
)

#: Any of these shows an encoder; a file with one key renamed has the others.
_SIGNS = (
    "embeddings.patch_embeddings.projection.weight", "embeddings.patch_embedding.weight",
    "embeddings.position_embeddings", "embeddings.position_embedding.weight",
)  # fmt: skip

#: Where transformers' folders hold weights.
WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)  # fmt: skip


#: timm's DINOv2 with a gated MLP, whose activation is SiLU.
_GATED = "vit_giant_patch14_reg4_dinov2"


@frozen(kw_only=True)
class ForeignEncoder:
    """An encoder's tensors in transformers' layout, and their sizes.

    Attributes:
        kind: its class.
        part: its tensors, by the layout's names.
        gated: whether its MLPs are.
        width, depth, patch, side, hidden, registers: sizes; ``side`` of the stored positions, in patches.
    """

    kind: Kind
    part: PartShapes
    gated: bool
    width: int
    depth: int
    patch: int
    side: int
    hidden: int
    registers: int

    def config(self, facts: Facts, *, output_patch: int, image_size: int) -> EncoderConfig:
        """The config of ``timm``; what shapes leave open is taken from facts, or asked for.

        Args:
            facts: answers.
            output_patch: pixels of an image per token and side.
            image_size: side of the images that it is for.

        Raises:
            UsageError: if a config file says something that ours cannot do.
        """
        heads = facts.heads(
            f"the encoder (width {self.width}, {self.depth} blocks)",
            self.width,
            told=facts.told.num_heads,
            said=facts.said(self.fits, "num_attention_heads"),
            known=self.kind.heads.get((self.width, self.depth)),
            known_of=f"the published size of {self.kind.what}",
            option="--heads N, Python: num_heads",
        )
        eps = facts.settle(
            "epsilon of the encoder's norms",
            told=facts.told.eps, said=facts.said(self.fits, "layer_norm_eps"),
            known=self.kind.eps, known_of=f"{self.kind.what}; --eps tells another",
        )  # fmt: skip
        mean, std = (
            facts.settle(
                f"{word} of the encoder's input",
                told=told, said=facts.said(_is_processor, f"image_{word}"), known=known,
                known_of=f"{self.kind.what}; --{word} tells another",
            )
            for word, told, known in zip(
                ("mean", "std"), (facts.told.mean, facts.told.std), self.kind.statistics,
                strict=True,
            )
        )  # fmt: skip
        arguments = self.sizes() | self._activation(facts)
        tree = {
            "name": "timm", "pretrained": False, "mean": list(mean), "std": list(std),
            "eps": eps, "output_patch": output_patch, "image_size": image_size,
            "model": _GATED if self.gated else self.kind.model,
            "model_args": arguments | {"num_heads": heads},
        }  # fmt: skip
        config = part_config("encoders", tree)
        assert isinstance(config, EncoderConfig)
        return config

    def sizes(self) -> dict[str, Any]:
        """Arguments of timm's architecture that shapes tell."""
        arguments = dict(self.kind.model_args)
        if self.kind is REGISTERS:
            arguments["reg_tokens"] = self.registers
        return arguments | {
            "embed_dim": self.width, "depth": self.depth, "patch_size": self.patch,
            "img_size": self.side * self.patch, "mlp_ratio": ratio(self.hidden, self.width),
        }  # fmt: skip

    def fits(self, table: Table) -> bool:
        """Whether a table is the config of this encoder, by its class and sizes."""
        return (
            table.get("model_type", self.kind.model_types[0]) in self.kind.model_types
            and table.get("hidden_size") == self.width
            and table.get("num_hidden_layers") == self.depth
        )

    def expected(self) -> Shapes:
        """Shapes of the tensors that such an encoder has, by the names of the file."""
        from rpiae.encoders.timm import TimmEncoder

        model = _GATED if self.gated else self.kind.model
        with torch.device("meta"):
            encoder = TimmEncoder(model=model, model_args=self.sizes() | {"num_heads": 1})
        foreign = shapes(self.kind.there(encoder.state_dict()))
        return {self.part.prefix + name: shape for name, shape in foreign.items()}

    def unused(self) -> tuple[str, ...]:
        """What the file may have besides, by its names."""
        return tuple(self.part.prefix + name for name in (*self.kind.unused, self.kind.final_norm))

    def own(self, state: Mapping[str, Tensor]) -> State:
        """Weights for ``TimmEncoder``, from the tensors of the file.

        Raises:
            CheckpointError: if one of them is missing or not finite.
        """
        names = {n: t for n, t in state.items() if n.startswith(self.part.prefix)}
        bare = {name.removeprefix(self.part.prefix): tensor for name, tensor in names.items()}
        without = (*self.kind.unused, self.kind.final_norm)
        return self.kind.here({n: t for n, t in bare.items() if not n.startswith(without)})

    def mlp(self) -> dict[str, Any]:
        """What its ``config.json`` says of its MLPs.

        Raises:
            UsageError: if its class has none of that size.
        """
        if not self.kind.has_ratio:
            return {"intermediate_size": self.hidden}
        if not self.gated:
            return {"mlp_ratio": _whole_where_it_is(ratio(self.hidden, self.width))}
        # Two thirds of the hidden layer, rounded up to a multiple of 8, and both halves in one.
        wide = 3 * self.hidden / 4 / self.width
        if (int(int(self.width * wide) * 2 / 3) + 7) // 8 * 8 * 2 != self.hidden:
            raise UsageError(f"{self.kind.what} has no gated MLP of {self.hidden // 2} channels")
        return {"use_swiglu_ffn": True, "mlp_ratio": _whole_where_it_is(wide)}

    def _activation(self, facts: Facts) -> dict[str, Any]:
        said = facts.said(self.fits, "hidden_act")
        if self.gated or said is None or said[0] == self.kind.activation:
            return {}
        if str(said[0]) not in ACTIVATIONS:
            raise UsageError(
                f"{said[1]} says hidden_act = {shown(said[0])}, which encoders here do not have: "
                f"{', '.join(ACTIVATIONS)}"
            )
        return {"act_layer": ACTIVATIONS[str(said[0])]}


def foreign_encoder(there: Shapes, *, source: str, prefix: str = "") -> ForeignEncoder:
    """What encoder the tensors under a prefix are.

    Args:
        there: shapes of a file's tensors, by name.
        source: the file, for messages.
        prefix: where the encoder is; its names may stand deeper below.

    Raises:
        CheckpointError: if they are of no known class, or a tensor that tells a size is missing.
    """
    found = below(there, prefix)
    before = [
        name.removesuffix(sign)
        for name in found
        for sign in _SIGNS
        if f".{name}".endswith(f".{sign}")
    ]
    if not before:
        raise CheckpointError(
            f"{source}: there is no encoder of transformers{f' under {prefix}' if prefix else ''}, whose "
            f"names end in {' or '.join(_SIGNS[:2])}; it has {printable(', '.join(sorted(found)[:3]))}"
        )
    inner = min(before, key=len)
    found = below(found, inner)
    return _measured(_kind(found), found, source, prefix + inner)


def read_encoder(
    folder: Path, told: Told, *, output_patch: int, image_size: int
) -> tuple[EncoderConfig, State, Facts]:
    """An encoder's config and weights from a folder of transformers.

    Args:
        folder: it has a ``config.json`` and weights.
        told: what the user said.
        output_patch, image_size: see ``ForeignEncoder.config``.

    Returns:
        config, state of the encoder by our names, and what was read, assumed and is still to be asked for.

    Raises:
        CheckpointError: if weights are missing, damaged or of something else.
        UsageError: if a config contradicts another one, or says what ours cannot do.
    """
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(
            f"{folder} has no weights of an encoder: expected one of {', '.join(WEIGHTS)}"
        )
    source = printable(str(path))
    state = with_long_names(
        read_weights(path, what="an encoder of transformers", signatures=SIGNATURES)
    )
    facts = Facts(source, told, find_documents(folder, told.configs))
    facts.note_read(path)
    found = foreign_encoder(shapes(state), source=source)
    check_encoder(found, state, source)
    config = found.config(facts, output_patch=output_patch, image_size=image_size)
    return config, found.own(state), facts


def check_encoder(found: ForeignEncoder, state: State, source: str) -> None:
    """Refuse a file that does not hold its encoder whole, or holds more.

    Raises:
        CheckpointError: with what is missing, unexpected and of another shape, or has no finite floats.
    """
    expected = found.expected()
    check_whole(source, found.kind.what, expected, shapes(state), unused=found.unused())
    check_values(source, expected, state)


def _kind(found: Shapes) -> Kind:
    if {"embeddings.patch_embedding.weight", "embeddings.position_embedding.weight"} & found.keys():
        return SIGLIP
    if any(".layernorm_before." in name for name in found):
        return VIT_MAE
    return REGISTERS if "embeddings.register_tokens" in found else PLAIN


def _measured(kind: Kind, found: Shapes, source: str, prefix: str) -> ForeignEncoder:
    """An encoder's sizes."""
    gated = any(".mlp.weights_in." in name for name in found)
    layout = encoder_layout(registers=True, gated=True) if gated else kind.layout
    if gated and kind is not REGISTERS:
        raise CheckpointError(
            f"{source}: {prefix}{FOREIGN_REGISTERS} is missing, and {kind.what} with a gated MLP cannot be "
            "imported: timm has none that resamples positions as transformers does"
        )
    part = PartShapes(source=source, layout=layout, prefix=prefix, shapes=found)
    convolution, mlp = "network.patch_embed.proj.weight", "network.blocks.{n}.mlp"
    return ForeignEncoder(
        kind=kind, part=part, gated=gated,
        width=part.size(
            Place(convolution, 0), Place("network.blocks.{n}.norm1.weight", 0),
            Place("network.blocks.{n}.norm2.weight", 0),
        ),
        depth=part.depth(),
        patch=part.size(Place(convolution, 2), Place(convolution, 3)),
        side=part.side(Place("network.pos_embed", kind.positions), beside=kind.class_tokens),
        hidden=part.size(
            Place(f"{mlp}.fc1.weight", 0), Place(f"{mlp}.fc1.bias", 0),
            *(() if gated else (Place(f"{mlp}.fc2.weight", 1),)),
        ),
        registers=part.size(Place("network.reg_token", 1)) if kind is REGISTERS else 0,
    )  # fmt: skip


def _is_processor(table: Table) -> bool:
    """Whether a table is a ``preprocessor_config.json``: three numbers each."""
    return all(
        isinstance(values := table.get(key), list)
        and len(values) == 3
        and all(isinstance(value, (int, float)) for value in values)
        for key in ("image_mean", "image_std")
    )


def encoder_files(encoder: TimmEncoder) -> tuple[Kind, State, Table, Table]:
    """An encoder as a folder of transformers has it.

    Returns:
        its class; its tensors, with a neutral final norm (and mask token) in place of what it has no use
        for; ``config.json``; ``preprocessor_config.json``.

    Raises:
        UsageError: if no class of transformers known here is of its kind.
    """
    own = encoder.state_dict()
    kind = _kind_of(own)
    try:
        foreign = kind.there(own)
    except CheckpointError as error:
        raise UsageError(f"the encoder is none of transformers known here: {error}") from None
    found = _measured(kind, shapes(foreign), "the encoder", "")
    block = encoder.network.blocks[0]
    activation = _activation_of(block.mlp.act)
    if activation is None:
        raise UsageError(
            f"the encoder's MLPs have {type(block.mlp.act).__name__}, which encoders of transformers known "
            f"here do not: {', '.join(ACTIVATIONS)}"
        )
    neutral = {
        kind.final_norm + "weight": torch.ones(found.width),
        kind.final_norm + "bias": torch.zeros(found.width),
        **{
            name: torch.zeros(1, found.width) for name in kind.unused if name.endswith("mask_token")
        },
    }
    config = {
        "architectures": [kind.architecture], "model_type": kind.model_types[0],
        "hidden_size": found.width, "num_hidden_layers": found.depth,
        "num_attention_heads": block.attn.num_heads, "hidden_act": activation,
        "layer_norm_eps": block.norm1.eps, "image_size": found.side * found.patch,
        "patch_size": found.patch, "num_channels": 3, "qkv_bias": True, **found.mlp(),
        **({"num_register_tokens": found.registers} if kind is REGISTERS else {}),
    }  # fmt: skip
    processor = {
        "image_processor_type": kind.processor, "image_mean": list(encoder.mean),
        "image_std": list(encoder.std),
    }  # fmt: skip
    return kind, neutral | foreign, config, processor


def without_final_norm(kind: Kind, weights: State) -> State:
    """An encoder's tensors as the reference keeps them: its final norm has none."""
    return {name: t for name, t in weights.items() if not name.startswith(kind.final_norm)}


def _kind_of(own: Mapping[str, Tensor]) -> Kind:
    if any(name.endswith(".ls1.gamma") for name in own):
        return REGISTERS if is_for_registers(own) else PLAIN
    return VIT_MAE if "network.cls_token" in own else SIGLIP


def _activation_of(module: nn.Module) -> str | None:
    """transformers' name of an activation."""
    if getattr(module, "approximate", "none") == "tanh":
        return "gelu_pytorch_tanh"
    return {
        "GELU": "gelu", "GELUTanh": "gelu_pytorch_tanh", "QuickGELU": "quick_gelu", "ReLU": "relu",
        "SiLU": "silu", "Swish": "silu",
    }.get(type(module).__name__)  # fmt: skip


def _whole_where_it_is(number: float) -> float:
    """An int where it is one: newer versions of transformers take no other."""
    return int(number) if number == int(number) else number
