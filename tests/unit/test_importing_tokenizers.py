"""``rpiae import``: tokenizers in the official layout."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rpiae
from rpiae.cli import main
from rpiae.core.errors import CheckpointError, UsageError
from rpiae.core.model.contracts import Features
from rpiae.core.model.tokenizer import RPiAE
from rpiae.generators.configs import DitConfig
from rpiae.interop.importing import import_model
from rpiae.interop.reference.facts import Told
from rpiae.interop.reference.lightningdit import dit_to_reference
from tests.official import alone, decoder_alone, official, state_of, tokenizer

HEADS = Told(num_heads=2, decoder_heads=2)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return official(tmp_path_factory.mktemp("official") / "there")


def read(source: Path, told: Told | None = None) -> RPiAE:
    model = import_model(source, told=told).model
    assert isinstance(model, RPiAE)
    return model


def images(side: int = 32) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def same(one: RPiAE, other: RPiAE) -> bool:
    given = images(one.trained_size or 32)
    with torch.inference_mode():
        return torch.equal(one.reconstruct(given), other.reconstruct(given))


def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], *words: str, code: int = 1) -> str:
    """The message of an import that writes nothing."""
    out = tmp_path / "out"
    assert main(["import", *words, "--out", str(out)]) == code
    assert not out.exists()
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text


def saved(state: dict[str, Tensor], path: Path) -> Path:
    torch.save(state, path)
    return path


def test_a_folder_with_its_configs(there: Path, tmp_path: Path) -> None:
    model = read(there)
    assert same(model, tokenizer())
    assert model.trained_size == 32
    found = import_model(there / "rpiae.pt")
    assert {Path(path).name for path in found.read} == {
        "rpiae.pt", "rpiae.yaml", "config.json", "preprocessor_config.json",
    }  # fmt: skip
    assert found.notes == ("features are not normalised, as no statistics are named (--stats)",)


@pytest.mark.parametrize(
    ("bridge", "sizes"),
    [
        ("identity", {}),
        ("vb3", {"width": 48, "depth": 2, "num_heads": 3, "mlp_hidden": 40}),
        ("vb5", {"stored_grid": [2, 2]}),
    ],
)
def test_other_sizes(tmp_path: Path, bridge: str, sizes: dict[str, Any]) -> None:
    encoder = {
        "name": "timm", "model": "vit_small_patch14_reg4_dinov2", "pretrained": False,
        "output_patch": 12, "image_size": 24, "mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3],
        "eps": 1e-5,
        "model_args": {
            "embed_dim": 48, "depth": 1, "num_heads": 3, "img_size": 30, "patch_size": 10,
            "reg_tokens": 2, "mlp_ratio": 1.37,
        },
    }  # fmt: skip
    model = tokenizer(3, bridge=bridge, encoder=encoder, **sizes)
    model.register_buffer("feature_mean", torch.randn(48, 2, 2))
    model.register_buffer("feature_var", torch.rand(48, 2, 2))
    found = read(official(tmp_path / "there", model))
    assert same(found, model)
    assert found.encoder.mean == (0.4, 0.5, 0.6)
    assert found.feature_var is not None
    assert torch.equal(found.feature_var, model.feature_var)  # type: ignore[arg-type]  # it was just set


def test_everything_open_is_asked_for_at_once(
    there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = alone(tmp_path / "alone", there)
    text = refused(tmp_path, capsys, str(file), code=2)
    assert "attention heads of the encoder (width 32, 3 blocks) (--heads N" in text
    assert "attention heads of the decoder (width 32, 1 layers) (--decoder-heads N" in text
    assert "--config" in text
    text = refused(tmp_path, capsys, str(decoder_alone(tmp_path / "d.pt", state_of(there))), code=2)
    assert "attention heads of the decoder" in text
    assert "the encoder, whose features are 32 wide (--encoder NAME" in text


def test_told_and_assumed(there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = alone(tmp_path / "alone", there), tmp_path / "out"
    command = ["import", str(file), "--heads", "2", "--decoder-heads", "2", "--out", str(out)]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert f"wrote {out}: " in told
    assert "images of 32×32 pixels to latents of 4×2×2" in told
    assert "epsilon of the encoder's norms: 1e-06, as of a DINOv2 encoder with registers" in told
    assert "mean of the encoder's input: 0.485, 0.456, 0.406" in told
    assert same(rpiae.load(out), tokenizer())
    assert main([*command, "--json", "--mean", "0", "0", "0", "--std", "1", "1", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["latent"] == [4, 2, 2]
    assert report["layout"] == "a tokenizer of the reference"
    assert not any("mean of the" in note for note in report["notes"])
    assert rpiae.load(out).encoder.mean == (0, 0, 0)


def test_heads_that_do_not_divide(there: Path, tmp_path: Path) -> None:
    file = alone(tmp_path / "alone", there)
    with pytest.raises(UsageError, match=r"5 attention heads of the encoder .* do not divide the"):
        import_model(file, told=Told(num_heads=5, decoder_heads=2))


def test_averages_are_preferred_and_others_can_be_had(there: Path, tmp_path: Path) -> None:
    other = tokenizer(1)
    raw = state_of(official(tmp_path / "other", other))
    torch.save({"model": raw, "ema": state_of(there)}, tmp_path / "ck.pt")
    assert same(read(tmp_path / "ck.pt", HEADS), tokenizer())
    told = Told(num_heads=2, decoder_heads=2, weights_key="model")
    assert same(read(tmp_path / "ck.pt", told), other)


def test_a_replica_and_a_neutral_final_norm_are_left_out(there: Path, tmp_path: Path) -> None:
    state = state_of(there)
    replica = {f"teacher_{n}": v + 1 for n, v in state.items() if n.startswith("encoder.")}
    norm = {"weight": torch.ones(32), "bias": torch.zeros(32)}
    norm = {f"encoder.encoder.layernorm.{name}": value for name, value in norm.items()}
    file = saved(state | replica | norm, tmp_path / "ck.pt")
    found = import_model(file, told=HEADS)
    assert isinstance(found.model, RPiAE)
    assert same(found.model, tokenizer())
    assert f"left out the replica ({len(replica)} tensors" in found.notes[0]
    norm["encoder.encoder.layernorm.bias"][3] = 0.5
    with pytest.raises(CheckpointError, match=r"layernorm\.bias is not 0, so the encoder's final"):
        import_model(saved(state | norm, file), told=HEADS)


def test_registers_that_only_the_replica_has(there: Path, tmp_path: Path) -> None:
    """Without them, an encoder of another class would be whole."""
    state = state_of(there)
    replica = {f"teacher_{n}": v for n, v in state.items() if n.startswith("encoder.")}
    name = "encoder.encoder.embeddings.register_tokens"
    del state[name]
    with pytest.raises(CheckpointError, match=f"missing: {name}"):
        import_model(saved(state | replica, tmp_path / "ck.pt"), told=HEADS)


@pytest.mark.parametrize(
    "name",
    [
        "encoder.encoder.embeddings.patch_embeddings.projection.weight",
        "encoder.encoder.embeddings.register_tokens",
        "encoder.encoder.embeddings.position_embeddings",
        "encoder.encoder.encoder.layer.1.attention.attention.key.bias",
        "encoder.encoder.encoder.layer.2.layer_scale2.lambda1",
        "decoder.decoder_pred.weight",
        "decoder.decoder_pos_embed",
        "decoder.trainable_cls_token",
        "decoder.decoder_layers.0.intermediate.dense.weight",
        "vb_feature_encoder.to_moments.weight",
        "vb_feature_decoder.in_proj.weight",
        "vb_feature_decoder.net.3.linear1.bias",
    ],
)
def test_a_renamed_key(
    there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    state = state_of(there)
    state[f"{name}x"] = state.pop(name)
    text = refused(tmp_path, capsys, str(saved(state, tmp_path / "ck.pt")))
    assert "ck.pt" in text
    assert name in text


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("encoder.encoder.embeddings.cls_token", (1, 1, 31)),
        ("encoder.encoder.embeddings.position_embeddings", (1, 4, 32)),
        ("encoder.encoder.embeddings.patch_embeddings.projection.weight", (32, 4, 14, 14)),
        ("encoder.encoder.encoder.layer.0.mlp.fc1.weight", (127, 32)),
        ("encoder.encoder.encoder.layer.1.norm1.weight", (33,)),
        ("decoder.decoder_embed.weight", (32, 33)),
        ("decoder.decoder_pos_embed", (1, 5, 36)),
        ("decoder.decoder_pred.weight", (700, 32)),
        ("decoder.decoder_norm.weight", (36,)),
        ("vb_feature_encoder.proj2.0.weight", (31, 32)),
        ("vb_feature_decoder.in_proj.weight", (32, 5)),
    ],
)
def test_a_wrong_shape(
    there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, shape: Any
) -> None:
    state = state_of(there) | {name: torch.zeros(shape)}
    text = refused(tmp_path, capsys, str(saved(state, tmp_path / "ck.pt")))
    assert name in text
    assert str(tuple(shape)) in text or "no square" in text


def test_all_that_is_wrong_is_listed(there: Path, tmp_path: Path) -> None:
    state = state_of(there)
    del state["decoder.decoder_norm.bias"]
    state |= {"optimizer.step": torch.zeros(1), "decoder.decoder_pred.bias": torch.zeros(3)}
    with pytest.raises(CheckpointError) as caught:
        import_model(saved(state, tmp_path / "ck.pt"), told=HEADS)
    text = str(caught.value)
    assert "missing: decoder.decoder_norm.bias" in text
    assert "unexpected: optimizer.step" in text
    assert "of another shape: decoder.decoder_pred.bias is (3,), expected (768,)" in text


@pytest.mark.parametrize(
    "name",
    [
        "encoder.encoder.encoder.layer.0.norm1.bias", "decoder.decoder_norm.bias",
        "vb_feature_encoder.norm1.bias",
    ],
)  # fmt: skip
def test_values_that_are_no_weights(there: Path, tmp_path: Path, name: str) -> None:
    """The message has the file, and its name of the tensor."""
    state = state_of(there)
    whole = state[name].long()
    state[name][2] = torch.nan
    with pytest.raises(
        CheckpointError, match=rf"/ck\.pt: {re.escape(name)} has values that are not"
    ):
        import_model(saved(state, tmp_path / "ck.pt"), told=HEADS)
    with pytest.raises(CheckpointError, match=rf"/ck\.pt: {re.escape(name)} is of torch\.int64"):
        import_model(saved(state | {name: whole}, tmp_path / "ck.pt"), told=HEADS)


class _Runs:
    """What would run code when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("was_run",)


def test_damaged_files_and_code(
    there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = (there / "rpiae.pt").read_bytes()
    Path("short.pt").write_bytes(whole[:-3000])
    assert "short.pt cannot be read as weights" in refused(tmp_path, capsys, "short.pt")
    torch.save({"model": state_of(there), "args": _Runs()}, "code.pt")
    text = refused(tmp_path, capsys, "code.pt")
    assert (
        "code.pt cannot be read as weights: not a plain weights file: it holds posix.mkdir" in text
    )
    assert not Path("was_run").exists()
    Path("empty").mkdir()
    assert "empty cannot be imported: it has no config.json" in refused(tmp_path, capsys, "empty")
    assert "there is no file" in refused(tmp_path, capsys, "nowhere.pt")


def test_a_generator_for_a_tokenizer_and_the_other_way_round(
    there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = DitConfig(
        latent_channels=4, rows=2, columns=2, num_classes=3, width=32, depth=1, num_heads=2
    )
    generator = saved(dit_to_reference(config.build().state_dict(), config), tmp_path / "g.pt")
    text = refused(tmp_path, capsys, str(generator), code=2)
    assert "g.pt is a generator of the reference: name the tokenizer that it was" in text
    text = refused(tmp_path, capsys, str(generator), "--tokenizer", "t", "--stats", "s", code=2)
    assert "to which --stats does not belong" in text
    text = refused(tmp_path, capsys, str(there), "--tokenizer", "t", "--head-depth", "2", code=2)
    assert "is a tokenizer of the reference, to which --tokenizer, --head-depth does not" in text
    other = saved({"layer.weight": torch.zeros(3)}, tmp_path / "other.pt")
    text = refused(tmp_path, capsys, str(other))
    assert "is neither a tokenizer of the reference (decoder_embed.weight is missing" in text
    encoder = there / "encoder" / "model.safetensors"
    assert "holds an encoder and no decoder" in refused(tmp_path, capsys, str(encoder))


def test_a_model_of_ours_needs_no_import(
    there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", str(there), "--out", str(tmp_path / "ours")]) == 0
    text = refused(tmp_path, capsys, str(tmp_path / "ours"), code=2)
    assert "holds a model of rpiae already" in text


def test_several_files_in_a_folder(there: Path, tmp_path: Path) -> None:
    folder = official(tmp_path / "several")
    saved(state_of(official(tmp_path / "other", tokenizer(1))), folder / "second.pt")
    with pytest.raises(UsageError, match=r"name one of rpiae\.pt, second\.pt with --file"):
        import_model(folder)
    assert same(read(folder, Told(file="second.pt")), tokenizer(1))


STATISTICS = {
    "map": ((32, 2, 2), (32, 2, 2)), "vector": ((32, 1, 1), (32, 1, 1)),
    "batch": ((1, 32, 1, 1), (1, 32, 2, 2)), "mean alone": ((32, 1, 1), None),
    "var alone": (None, (1, 32, 2, 2)),
}  # fmt: skip


@pytest.mark.parametrize("kind", STATISTICS)
def test_statistics_of_all_shapes(there: Path, tmp_path: Path, kind: str) -> None:
    shapes = dict(zip(("mean", "var"), STATISTICS[kind], strict=True))
    file = tmp_path / "stats.pt"
    given = {name: torch.rand(shape).double() for name, shape in shapes.items() if shape}
    torch.save(given | {"count": 3}, file)
    model = read(there, Told(stats=str(file)))
    plain = read(there)
    with torch.inference_mode():
        features = plain.features(images())
        mean, var = (
            given.get(name, torch.full((1, 1, 1), float(name == "var"))).float().expand(2, 32, 2, 2)
            for name in ("mean", "var")
        )
        tokens = (features.tokens - mean.flatten(2).mT) / (var.flatten(2).mT + 1e-5).sqrt()
        wanted = plain.bridge.encode(Features(tokens, features.grid)).mode()
        found = model.encode(images()).mode()
    torch.testing.assert_close(found, wanted.squeeze(2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mean": torch.zeros(33, 1, 1)}, r"mean is torch\.float32 \(33, 1, 1\), .* 32 wide"),
        ({"var": torch.ones(32, 3, 3)}, r"\(32, 3, 3\), .* on a grid of 2×2"),
        ({"var": torch.ones(32)}, r"expected floats \(32, 1, 1\) or \(32, 2, 2\)"),
        ({"mean": torch.zeros(32, 1, 1).long()}, r"mean is torch\.int64"),
        ({"mean": torch.full((32, 1, 1), torch.inf)}, "mean has values that are not finite"),
        (
            {"var": torch.full((32, 1, 1), 1e300, dtype=torch.float64)},
            "var has values that are not finite",
        ),
        ({"var": -torch.ones(32, 1, 1)}, "variances are not negative"),
        ({"std": torch.ones(32, 1, 1)}, "has neither mean nor var"),
    ],
)
def test_statistics_that_do_not_fit(
    there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, message: str
) -> None:
    file = saved(content, tmp_path / "stats.pt")
    text = refused(tmp_path, capsys, str(there), "--stats", str(file))
    assert re.search(message, text)


def test_the_yaml_counts(there: Path, tmp_path: Path) -> None:
    folder = official(tmp_path / "named")
    path = folder / "rpiae.yaml"
    text = path.read_text()
    path.write_text(text.replace("  params:", "  params:\n    normalization_stat_path: stats/s.pt"))
    with pytest.raises(UsageError, match=r"has in 'stats/s\.pt' \(--stats FILE"):
        import_model(folder)
    torch.save({"mean": torch.ones(32, 1, 1)}, folder / "s.pt")
    assert read(folder).feature_mean is not None
    path.write_text(text.replace("  params:", "  params:\n    eps: 1e-3"))
    stats = Told(stats=str(folder / "s.pt"))
    found = read(folder, stats)
    assert found.feature_var is not None
    torch.testing.assert_close(found.feature_var + 1e-5, torch.full((32, 1, 1), 1.001))
    path.write_text(text.replace("  params:", "  params:\n    eps: small"))
    with pytest.raises(UsageError, match="eps of its config is 'small', which is no number"):
        import_model(folder, told=stats)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("vb_latent_dim: 4", "vb_latent_dim: 5", "vb_latent_dim is 5, and the tensors have 4"),
        ("input_size: 28", "input_size: 224", "input_size is 224, and 2 patches of 14 pixels are"),
        ("Dinov2withNorm", "MAEwNorm", "'MAEwNorm', and the tensors are a DINOv2 encoder"),
        ("patch_size: 16", "patch_size: 8", "decoder_patch_size is 8, and the tensors have 16"),
        (
            "dinov2_path: encoder",
            "normalize: false",
            "its encoder does not normalise its features",
        ),
    ],
)
def test_a_yaml_of_another_model(
    there: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    folder = official(tmp_path / "edited")
    path = folder / "rpiae.yaml"
    path.write_text(path.read_text().replace(old, new))
    told = Told(num_heads=2, decoder_heads=2, configs=(str(path),))
    with pytest.raises(UsageError, match=f"does not belong to .*{message}"):
        import_model(folder, told=told)
    assert any(message in note for note in import_model(folder, told=HEADS).notes)


def test_configs_that_disagree_or_cannot_be_done(there: Path, tmp_path: Path) -> None:
    file = alone(tmp_path / "alone", there)
    encoder = json.loads((there / "encoder" / "config.json").read_text())
    decoder = there / "decoder"
    other = tmp_path / "config.json"

    def named(**changes: Any) -> Told:
        other.write_text(json.dumps({**encoder, **changes}))
        return Told(configs=(str(decoder), str(other)))

    assert same(read(file, named()), tokenizer())
    activated = read(file, named(hidden_act="gelu_pytorch_tanh"))
    assert not same(activated, tokenizer())
    with pytest.raises(UsageError, match=r"attention heads of the encoder .* \(--heads N"):
        import_model(file, told=named(num_attention_heads=None))
    assert same(read(file, named(layer_norm_eps=None, hidden_act=None)), tokenizer())
    with pytest.raises(UsageError, match="hidden_act = 'mish', which encoders here do not have"):
        import_model(file, told=named(hidden_act="mish"))
    told = named(num_attention_heads=4)
    told = Told(configs=(*told.configs, str(there / "encoder")))
    with pytest.raises(
        UsageError, match=r"num_attention_heads is 4 in .* and 2 in .* with --config"
    ):
        import_model(file, told=told)
    other.write_text(
        json.dumps(json.loads((decoder / "config.json").read_text()) | {"layer_norm_eps": 1e-6})
    )
    with pytest.raises(UsageError, match="layer_norm_eps = 1e-06 of the decoder, which is 1e-12"):
        import_model(file, told=Told(num_heads=2, configs=(str(other),)))


def test_configs_that_cannot_be_read(there: Path, tmp_path: Path) -> None:
    file = alone(tmp_path / "alone", there)
    path = tmp_path / "a.yaml"
    for text, message in (
        ("a: [", "is not a YAML file"), ("[1, 2]", "holds no table"),
        ("a: &x [1]\nb: *x", r"^\S+a\.yaml uses YAML's aliases"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            import_model(file, told=Told(configs=(str(path),)))
        (file.parent / "beside.yaml").write_text(text)
    path.unlink()
    with pytest.raises(UsageError, match="is a folder without YAML and JSON files"):
        import_model(file, told=Told(configs=(str(tmp_path),)))
    assert same(read(file, HEADS), tokenizer())
