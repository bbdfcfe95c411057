"""Arguments of encoders that cannot be: each ends in one message that names its field."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpiae.core.config.parts import EncoderConfig
from rpiae.core.errors import UsageError
from rpiae.core.model.resolve import part_config

TIMM: dict[str, Any] = {
    "embed_dim": 32,
    "depth": 1,
    "num_heads": 2,
    "img_size": 32,
    "patch_size": 16,
}
CLIP: dict[str, Any] = {
    "width": 32,
    "layers": 1,
    "head_width": 16,
    "image_size": 32,
    "patch_size": 16,
}
MODELS = {
    "timm:vit_base_patch16_224": TIMM, "timm:vit_small_patch16_dinov3": TIMM,
    "open_clip:ViT-B-16": CLIP, "open_clip:ViT-B-16-SigLIP": TIMM,
}  # fmt: skip


def _config(name: str, **fields: Any) -> EncoderConfig:
    part, _, model = name.partition(":")
    config = part_config("encoders", {"name": part, "model": model, "pretrained": False, **fields})
    assert isinstance(config, EncoderConfig)
    return config


def _refused(name: str, arguments: dict[str, Any], message: str) -> None:
    config = _config(name, model_args={**MODELS[name], **arguments})
    with pytest.raises(UsageError, match=message):
        config.describe()
    with pytest.raises(UsageError, match=message):
        config.build()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("value", [0, -1, 10**9, float("inf"), -(10**30), 1e300])
def test_sizes_out_of_all_reason_are_refused_before_anything_is_built(
    name: str, value: float
) -> None:
    for argument in MODELS[name]:
        _refused(
            name, {argument: value}, rf"encoder\.model_args\.{argument} must be a number from 1"
        )


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("timm:vit_base_patch16_224", {"norm_layer": "x"}),
        ("timm:vit_base_patch16_224", {"act_layer": 3}),
        ("timm:vit_base_patch16_224", {"num_heads": 3}),
        ("timm:vit_base_patch16_224", {"depth": "deep"}),
        ("timm:vit_base_patch16_224", {"global_pool": "x"}),
        ("timm:vit_base_patch16_224", {"in_chans": 1}),
        ("timm:vit_base_patch16_224", {"mlp_ratio": "x"}),
        ("timm:vit_base_patch16_224", {"patch_size": "16"}),
        ("timm:vit_base_patch16_224", {"img_size": [3]}),
        ("timm:vit_base_patch16_224", {"dynamic_img_size": False}),
        ("timm:vit_small_patch16_dinov3", {"rope_temperature": "warm"}),
        ("open_clip:ViT-B-16", {"layers": 2.5}),
        ("open_clip:ViT-B-16", {"layers": [1, 2]}),
        ("open_clip:ViT-B-16", {"patch_size": 2.5}),
        ("open_clip:ViT-B-16", {"image_size": "large"}),
        ("open_clip:ViT-B-16-SigLIP", {"num_heads": 5}),
    ],
)  # fmt: skip
def test_what_a_library_chokes_on_names_the_field(name: str, arguments: dict[str, Any]) -> None:
    _refused(name, arguments, r"encoder\.model_args")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "argument", ["checkpoint_path", "pretrained", "pretrained_cfg", "timm_model_pretrained"]
)
def test_no_argument_of_a_model_loads_a_file(name: str, argument: str) -> None:
    _refused(name, {argument: "/etc/passwd"}, rf"model_args\.{argument}: .*encoder\.weights")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"output_patch": -1}, r"output_patch: must be at least 1, got -1"),
        ({"output_patch": 0}, r"output_patch: must be at least 1"),
        ({"image_size": 10**9}, r"image_size: must be at most 65536"),
        ({"eps": 1e300}, r"eps: must be at most 1"),
        ({"width": 0}, r"width: must be at least 1"),
        ({"patch": 10**6}, r"patch: must be at most"),
    ],
)
def test_facts_have_bounds(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _config("timm:vit_base_patch16_224", **fields)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 10**6), ("depth", 100_000), ("native_grid", 100_000), ("patch", 10**15),
        ("num_heads", 0), ("mlp_ratio", 1e300), ("mlp_ratio", 0), ("depth", -3), ("image_size", 0),
    ],
)  # fmt: skip
def test_sizes_of_the_plain_vit_have_bounds(field: str, value: float) -> None:
    with pytest.raises(UsageError, match=rf"{field}: must be at (least|most)"):
        part_config("encoders", {"name": "vit", field: value})


def test_a_std_of_zero_is_refused() -> None:
    for name in ("timm:vit_base_patch16_224", "vit:"):
        config = (
            _config(name, std=[0.5, 0.0, 0.5])
            if name != "vit:"
            else part_config("encoders", {"name": "vit", "std": [0.5, 0.0, 0.5]})
        )
        assert isinstance(config, EncoderConfig)
        with pytest.raises(UsageError, match=r"encoder\.std .* must be positive"):
            config.describe()


_NAMES = st.sampled_from(
    [*TIMM, *CLIP, "mlp_ratio", "norm_layer", "act_layer", "qkv_bias", "class_token", "init_values",
     "reg_tokens", "global_pool", "in_chans", "drop_rate", "pos_embed", "ls_init_value", "x"]
)  # fmt: skip
_VALUES = st.one_of(
    st.integers(-2, 64), st.floats(allow_nan=False, width=32), st.booleans(), st.text(max_size=3),
    st.lists(st.integers(-1, 32), max_size=3), st.just({}),
)  # fmt: skip


@settings(max_examples=60)
@given(name=st.sampled_from(sorted(MODELS)), changed=st.dictionaries(_NAMES, _VALUES, max_size=2))
def test_any_arguments_describe_a_model_or_are_refused(name: str, changed: dict[str, Any]) -> None:
    config = _config(name, model_args={**MODELS[name], **changed})
    told = ""
    try:
        assert config.describe().width > 0
    except UsageError as error:
        told = str(error)
    assert not told or "model_args" in told or "cannot be a pivot" in told
    assert "unexpected" not in told
