"""A run config written as TOML and read again is the same config."""

from __future__ import annotations

import string
import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rpiae.bridges.configs import IdentityBridgeConfig, VariationalBridgeConfig
from rpiae.core.config.convert import parse
from rpiae.core.config.recipe import (
    AdaptiveConfig,
    OptimiserConfig,
    RunConfig,
    StageConfig,
    TermConfig,
)
from rpiae.core.config.tree import apply_override, dump_toml, unparse
from rpiae.core.model.naming import converter
from rpiae.decoders.configs import VitDecoderConfig
from rpiae.encoders.configs import TimmEncoderConfig, VitEncoderConfig
from rpiae.losses.configs import (
    FeatureLossConfig,
    KlLossConfig,
    L1LossConfig,
    MseLossConfig,
    PivotLossConfig,
    PivotPerceptualLossConfig,
)
from rpiae.recipes.configs import TokenizerRecipeConfig

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
names = st.text(string.ascii_letters + string.digits, min_size=1, max_size=8)
counts = st.integers(1, 1024)
sizes = st.integers(1, 64)
ratios = st.floats(0.5, 64)
steps = st.integers(0, 10**9)
amounts = st.floats(0, 1e12)
finite = st.floats(allow_nan=False, allow_infinity=False)
triples = st.tuples(finite, finite, finite)
keys = st.text(string.ascii_letters + string.digits + "_-. ", min_size=1, max_size=6)
toml_values = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | finite | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=5,
)

encoders = st.one_of(
    st.builds(
        VitEncoderConfig,
        name=st.just("vit"),
        preset=texts,
        pretrained=st.booleans(),
        width=st.integers(4, 2048),
        depth=sizes,
        num_heads=sizes,
        mlp_ratio=ratios,
        patch=sizes,
        native_grid=sizes,
        stem=st.sampled_from(["patch", "conv"]),
        mean=triples,
        std=triples,
        weights=texts,
        image_size=st.none() | counts,
    ),
    st.builds(
        TimmEncoderConfig,
        name=st.just("timm"),
        preset=texts,
        pretrained=st.booleans(),
        model=texts,
        layers=st.lists(counts, max_size=3).map(tuple),
        model_args=st.dictionaries(keys, toml_values, max_size=3),
        mean=st.none() | triples,
        std=st.none() | triples,
        weights=texts,
        hub_id=texts,
        revision=texts,
        width=st.none() | counts,
        prefix_tokens=st.none() | counts,
    ),
)
bridges = st.one_of(
    st.builds(IdentityBridgeConfig, name=st.just("identity"), features=st.none() | counts),
    st.builds(
        VariationalBridgeConfig,
        name=st.just("variational"),
        preset=texts,
        features=st.none() | counts,
        latent_channels=sizes,
        decoder_layers=sizes,
        encoder_mlp_ratio=ratios,
        decoder_mlp_ratio=ratios,
    ),
)
decoders = st.builds(
    VitDecoderConfig,
    name=st.just("vit"),
    features=st.none() | counts,
    patch=st.none() | sizes,
    width=sizes.map(lambda heads: 16 * heads),
    depth=sizes,
    num_heads=st.sampled_from([1, 2, 4, 8, 16]),
    mlp_hidden=counts,
    positions=st.sampled_from([None, "fixed", "trained"]),
    stored_grid=st.just(()) | st.tuples(sizes, sizes),
)
losses = st.one_of(
    *(
        st.builds(cls, name=st.just(name), preset=texts)
        for cls, name in (
            (FeatureLossConfig, "feature"),
            (KlLossConfig, "kl"),
            (L1LossConfig, "l1"),
            (MseLossConfig, "mse"),
            (PivotLossConfig, "pivot"),
        )
    ),
    st.builds(
        PivotPerceptualLossConfig,
        name=st.just("pivot-perceptual"),
        layers=st.lists(counts, max_size=4).map(tuple),
    ),
)
adaptive = st.builds(
    AdaptiveConfig,
    layer=st.sampled_from(["encoder", "encoder-last", "decoder"]),
    warmup_steps=steps,
    eps=amounts,
    maximum=amounts,
)
terms = st.builds(
    TermConfig,
    loss=losses,
    weight=amounts,
    start_steps=steps,
    start_epochs=amounts,
    ramp_steps=steps,
    adaptive=st.none() | adaptive,
    reference=st.booleans(),
    optional=st.booleans(),
)
optimisers = st.builds(
    OptimiserConfig,
    learning_rate=amounts,
    final_learning_rate=amounts,
    shape=st.sampled_from(["cosine", "linear", "constant"]),
    warmup_steps=steps,
    warmup_epochs=amounts,
    warmup_from_zero=st.booleans(),
    decay_epochs=st.none() | amounts,
    betas=st.tuples(finite, finite),
    eps=amounts,
    weight_decay=amounts,
    clip=amounts,
)
stages = st.builds(
    StageConfig,
    name=names,
    train=st.lists(texts, max_size=3).map(tuple),
    use_bridge=st.booleans(),
    posterior=st.sampled_from(["sample", "mode"]),
    noise=amounts,
    terms=st.lists(terms, max_size=2).map(tuple),
    steps=st.none() | counts,
    epochs=st.none() | amounts,
    batch_size=counts,
    optimiser=optimisers,
    ema=st.floats(0, 1),
    ema_warmup=st.booleans(),
    start_from=st.sampled_from(["weights", "ema"]),
)
recipes = st.builds(
    TokenizerRecipeConfig,
    name=st.just("tokenizer"),
    preset=texts,
    summary=texts,
    stages=st.lists(stages, max_size=2).map(tuple),
    batch_size=st.none() | counts,
    max_steps=st.none() | counts,
    accumulate=counts,
    evaluate_every=steps,
    checkpoint_every=steps,
    keep_checkpoints=counts,
    default_data=texts,
    default_resize=amounts,
    default_positions=st.sampled_from(["", "fixed", "trained"]),
)

runs = st.builds(
    RunConfig,
    encoder=encoders,
    bridge=bridges,
    decoder=decoders,
    recipe=recipes,
    data=st.none(),
    out=texts,
    init=texts,
    seed=steps,
    device=texts,
    precision=st.sampled_from(["auto", "fp32", "bf16"]),
)


def _read(tree: Any) -> RunConfig:
    return parse(tree, RunConfig, source="the test", converter=converter())


@given(runs)
def test_through_toml_text(config: RunConfig) -> None:
    assert _read(tomllib.loads(dump_toml(config))) == config


@given(runs)
def test_through_a_tree(config: RunConfig) -> None:
    tree = unparse(config)
    assert _read(tree) == config
    assert unparse(_read(tree)) == tree


@given(runs, amounts, st.sampled_from(["fp32", "bf16"]))
def test_an_override_sets_one_value(config: RunConfig, noise: float, precision: str) -> None:
    tree = unparse(config)
    expected = unparse(config)
    apply_override(tree, f"precision={precision}")
    expected["precision"] = precision
    for index in range(len(config.recipe.stages)):
        apply_override(tree, f"recipe.stages[{index}].noise={noise!r}")
        expected["recipe"]["stages"][index]["noise"] = noise
    assert tree == expected
    assert _read(tree).precision == precision
