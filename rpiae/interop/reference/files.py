"""Config files of the official layout: what its tensors do not say, as the reference reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from rpiae.core.model.layouts import State
from rpiae.core.model.saved import CONFIG_FILE
from rpiae.core.runtime.files import write_text
from rpiae.decoders.configs import VitDecoderConfig
from rpiae.interop.reference.facts import Table
from rpiae.interop.reference.kinds import Kind
from rpiae.interop.reference.transformers import WEIGHTS

#: Names in a folder of the official layout.
WEIGHTS_FILE, YAML_FILE, STATISTICS_FILE = "rpiae.pt", "rpiae.yaml", "stats.pt"
ENCODER, DECODER = "encoder", "decoder"


def write_encoder(folder: Path, weights: State, config: Table, processor: Table) -> None:
    """A folder that transformers' ``from_pretrained`` takes.

    Raises:
        RunError: if it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.clone().contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / WEIGHTS[0], metadata={"format": "pt"})
    _write_json(folder / CONFIG_FILE, config)
    _write_json(folder / "preprocessor_config.json", processor)


def write_decoder(folder: Path, decoder: VitDecoderConfig, side: int) -> None:
    """The decoder's config, which is one of transformers' ViT-MAE.

    Raises:
        RunError: if it cannot be written.
    """
    assert decoder.patch is not None
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(
        folder / CONFIG_FILE,
        {
            "architectures": ["ViTMAEForPreTraining"], "model_type": "vit_mae",
            "hidden_size": decoder.features, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
            "image_size": side * decoder.patch, "patch_size": decoder.patch, "num_channels": 3,
            "qkv_bias": True, "decoder_hidden_size": decoder.width,
            "decoder_num_hidden_layers": decoder.depth,
            "decoder_num_attention_heads": decoder.num_heads,
            "decoder_intermediate_size": decoder.mlp_hidden,
        },
    )  # fmt: skip


def write_yaml(
    path: Path, kind: Kind, *, input_size: int, output_patch: int, channels: int, normalised: bool
) -> None:
    """The ``stage_1`` of the reference's YAML; its paths are seen from its own folder.

    Args:
        path: where to.
        kind: class of the encoder.
        input_size: side of the encoder's input in pixels.
        output_patch: pixels of an image per token and side.
        channels: of the latents; 0 without a bridge.
        normalised: whether statistics lie beside.

    Raises:
        RunError: if it cannot be written.
    """
    import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own

    params: dict[str, Any] = {
        "encoder_cls": kind.classes[0], "encoder_config_path": ENCODER,
        "encoder_input_size": input_size,
        "encoder_params": {kind.path_argument: ENCODER},
        "decoder_config_path": DECODER, "decoder_patch_size": output_patch, "noise_tau": 0.0,
        "reshape_to_2d": True, "use_teacher": False,
        **({"normalization_stat_path": STATISTICS_FILE} if normalised else {}),
        **({"use_vb": True, "vb_latent_dim": channels} if channels else {}),
    }  # fmt: skip
    target = "stage1.RPiAE_VB" if channels else "stage1.RPiAE"
    stage = {"target": target, "params": params, "ckpt": WEIGHTS_FILE}
    write_text(path, yaml.safe_dump({"stage_1": stage}, sort_keys=False))


def _write_json(path: Path, content: Table) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")
