"""``rpiae export``: graphs that give a tokenizer's numbers elsewhere, and what is refused."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rpiae
from rpiae.cli import main
from rpiae.core.errors import CheckpointError, MissingExtraError, RunError, UsageError
from rpiae.core.model.folders import save_tokenizer
from rpiae.core.model.resampling import Mode, weights
from rpiae.core.model.tokenizer import RPiAE
from rpiae.interop.exporting import TARGETS, export_model
from rpiae.interop.graphs.onnx import save_onnx
from rpiae.interop.graphs.tracing import Graph, graphs, sizes_of
from tests.commands import rpiae as run
from tests.toys import BRIDGES, DECODERS, ENCODERS

PAGE = (Path(__file__).parents[2] / "docs" / "interop.md").read_text("utf-8")

#: A timm ViT without registers has the rule of DINOv2: positions are read a tenth of a token aside.
OFFSET = {**ENCODERS["timm"], "model": "vit_small_patch14_dinov2"}

IMAGE_BRIDGES = [name for name in BRIDGES if not name.startswith(("t", "temporal"))]

#: timm's rotary positions keep the sides that they are traced with.
ONE_SIZE = "timm-rotary"

#: Every built-in part of images once.
PARTS = [
    *((encoder, "identity", "vit") for encoder in ENCODERS),
    *(("vit", bridge, "conv") for bridge in IMAGE_BRIDGES),
]


class Made(NamedTuple):
    """A tokenizer, the folder that it was exported to, and what was said."""

    model: RPiAE
    folder: Path
    report: dict[str, Any]


def tokenizer(
    encoder: str | dict[str, Any] = "vit", bridge: str = "vb4", decoder: str = "vit"
) -> RPiAE:
    named = ENCODERS[encoder] if isinstance(encoder, str) else encoder
    model = rpiae.build(
        encoder=named, bridge=BRIDGES[bridge], decoder=DECODERS[decoder], pretrained=False, seed=0
    )
    return model.eval().requires_grad_(False)


def drawn(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def loaded_pt2(folder: Path, name: str) -> Any:
    return torch.export.load(folder / f"{name}.pt2").module()


def loaded_onnx(folder: Path, name: str) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        folder / f"{name}.onnx", providers=["CPUExecutionProvider"]
    )
    given = session.get_inputs()[0].name
    return lambda values: [torch.from_numpy(v) for v in session.run(None, {given: values.numpy()})]


def assert_gives_the_same(model: RPiAE, encode: Any, decode: Any, images: Tensor) -> None:
    posterior = model.encode(images)
    latent, logvar = encode(images)
    torch.testing.assert_close(latent, posterior.mode(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logvar, posterior.logvar, atol=1e-4, rtol=1e-4)  # type: ignore[attr-defined]  # it is Gaussian
    [made] = decode(latent)
    wanted = model.decode(posterior.mode(), size=images.shape[-2:])
    torch.testing.assert_close(made, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("antialias", [False, True])
def test_matrices_interpolate_as_torch_does(mode: Mode, antialias: bool) -> None:
    for there, wanted in itertools.product((1, 2, 3, 16, 37), (2, 5, 16, 24, 37)):
        maps = drawn(1, 2, there, 2)
        found = F.interpolate(maps, size=(wanted, 3), mode=mode, antialias=antialias)
        rows = weights(there, wanted, mode=mode, antialias=antialias)
        columns = weights(2, 3, mode=mode, antialias=antialias)
        torch.testing.assert_close(rows @ maps @ columns.T, found, atol=2e-6, rtol=0)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_matrices_read_aside_as_torch_does_with_scales(mode: Mode) -> None:
    maps = drawn(1, 2, 37, 7)
    found = F.interpolate(maps, scale_factor=[16.1 / 37, 9.1 / 7], mode=mode)
    rows, columns = (
        weights(there, wanted, mode=mode, antialias=False, offset=0.1)
        for there, wanted in ((37, 16), (7, 9))
    )
    torch.testing.assert_close(rows @ maps @ columns.T, found, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def onnx_of_one_size(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """What the command line makes of a size that is no multiple of a token's."""
    parent = tmp_path_factory.mktemp("onnx")
    model = tokenizer("timm")
    model.latent_mean, model.latent_std = torch.arange(4.0), torch.ones(4)
    save_tokenizer(model, parent / "model")
    out, _ = run(
        "export", "model", "--to", "onnx", "--out", "there", "--size", "40", "72", "--json",
        cwd=parent,
    )  # fmt: skip
    return Made(model, parent / "there", json.loads(out))


@pytest.fixture(scope="module")
def dynamic_pt2(tmp_path_factory: pytest.TempPathFactory) -> Made:
    model = tokenizer(OFFSET)
    out = tmp_path_factory.mktemp("pt2") / "there"
    exported = export_model(model, to="torch-export", out=out, dynamic=True)
    return Made(model, exported.folder, {"told": exported.told})


def test_onnx_from_the_command_line(onnx_of_one_size: Made) -> None:
    _, folder, report = onnx_of_one_size
    assert report["folder"] == "there"
    assert any("latent_norm" in sentence for sentence in report["told"])
    assert {path.name for path in folder.iterdir()} == {
        "encoder.onnx", "decoder.onnx", "export.json",
    }  # fmt: skip
    facts = json.loads((folder / "export.json").read_text("utf-8"))
    assert (facts["opset"], facts["size"]) == (20, [40, 72])
    assert facts["latent_norm"] == {"mean": [0, 1, 2, 3], "std": [1, 1, 1, 1]}
    assert facts["graphs"]["encoder"]["outputs"]["logvar"] == ["batch", 4, 3, 5]
    assert facts["graphs"]["encoder"]["largest_difference"] < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_onnxruntime_gives_the_tokenizers_numbers(onnx_of_one_size: Made, batch: int) -> None:
    model, folder, _ = onnx_of_one_size
    encode, decode = loaded_onnx(folder, "encoder"), loaded_onnx(folder, "decoder")
    assert_gives_the_same(model, encode, decode, drawn(batch, 3, 40, 72))


def test_onnx_has_standard_operators_and_positions_of_its_size(onnx_of_one_size: Made) -> None:
    import onnx

    file = onnx.load(onnx_of_one_size.folder / "encoder.onnx")
    assert {node.domain for node in file.graph.node} == {""}
    assert not {"Resize", "Floor", "Range", "Where"} & {node.op_type for node in file.graph.node}
    batch, *rest = file.graph.input[0].type.tensor_type.shape.dim
    assert (batch.dim_param, [side.dim_value for side in rest]) == ("batch", [3, 40, 72])


@torch.no_grad()
def test_graphs_of_torch_export_take_sides_that_vary(dynamic_pt2: Made) -> None:
    model, folder, _ = dynamic_pt2
    encode, decode = loaded_pt2(folder, "encoder"), loaded_pt2(folder, "decoder")
    stored = model.encoder.network.patch_embed.grid_size[0]  # type: ignore[attr-defined]  # it is of timm
    for batch, rows, columns in ((1, stored, stored), (3, stored, 4), (2, 2, 9), (4, 8, 3)):
        assert_gives_the_same(model, encode, decode, drawn(batch, 3, rows * 16, columns * 16))
    with pytest.raises(AssertionError):
        encode(drawn(1, 3, 40, 72))


def test_each_graph_has_its_own_weights_alone(dynamic_pt2: Made) -> None:
    of_encoder, of_decoder = (
        {key for key in loaded_pt2(dynamic_pt2.folder, name).state_dict() if "folded" not in key}
        for name in ("encoder", "decoder")
    )
    assert "tokenizer.encoder.network.blocks.0.attn.qkv.weight" in of_encoder - of_decoder
    assert "tokenizer.decoder.pred.weight" in of_decoder - of_encoder
    assert not of_encoder & of_decoder


@torch.no_grad()
def test_the_page_loads_both_files(onnx_of_one_size: Made, dynamic_pt2: Made) -> None:
    section = PAGE.partition("## torch.export and ONNX")[2].partition("\n## ")[0]
    for_onnx, for_torch = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    for made, code in ((onnx_of_one_size, for_onnx), (dynamic_pt2, for_torch)):
        with contextlib.chdir(made.folder.parent):
            exec(code, {})


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
@pytest.mark.parametrize("parts", PARTS, ids="-".join)
def test_every_part_of_images_is_exported(
    tmp_path: Path, parts: tuple[str, str, str], dynamic: bool
) -> None:
    model = tokenizer(*parts)
    sizes = sizes_of(model, size=None if dynamic else (50, 90), dynamic=dynamic)
    if dynamic and parts[0] == ONE_SIZE:
        [encoder, _] = graphs(model, sizes)
        with pytest.raises(
            RunError, match=r"encoder\.pt2 does not run on other sizes .*--size H W"
        ):
            encoder.check(encoder.program.module(), "encoder.pt2", 1e-4)
        return
    for graph in graphs(model, sizes):
        torch.export.save(graph.program, tmp_path / "graph.pt2")
        graph.check(torch.export.load(tmp_path / "graph.pt2").module(), "pt2", 1e-4)
        graph.check(save_onnx(graph, tmp_path / "graph.onnx"), "onnx", 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("to", "dtype"), [("torch-export", "bf16"), ("onnx", "fp16")])
def test_graphs_compute_in_half_precision(tmp_path: Path, to: str, dtype: str) -> None:
    model = tokenizer("timm", "vb4", "conv")
    exported = export_model(model, to=to, out=tmp_path / "there", size=(48, 80), dtype=dtype)
    facts = json.loads((exported.folder / "export.json").read_text("utf-8"))
    assert facts["computed_in"] == dtype
    assert model.dtype == torch.float32


class Doubling(nn.Module):
    def forward(self, values: Tensor) -> tuple[Tensor]:
        return (2 * values,)


@pytest.mark.parametrize(("off", "refused"), [(0.0, False), (5e-4, False), (2e-2, True)])
def test_a_file_that_gives_other_numbers_is_refused(off: float, refused: bool) -> None:
    trial = torch.tensor([0.25, 2.5])
    graph = Graph(
        name="encoder",
        program=None,
        model=Doubling(),
        shapes={},
        trials=(trial,),  # type: ignore[arg-type]  # not looked at
    )

    def shifted(values: Tensor) -> Sequence[Tensor]:
        return [2 * values + off]

    if refused:
        with pytest.raises(RunError, match=r"encoder\.onnx differs from the tokenizer by 0\.004 "):
            graph.check(shifted, "encoder.onnx", 1e-3)
    else:
        assert graph.check(shifted, "encoder.onnx", 1e-3) == pytest.approx(off / 5, abs=1e-7)


def test_no_number_is_a_difference_too() -> None:
    graph = Graph(
        name="encoder",
        program=None,
        model=Doubling(),
        shapes={},
        trials=(torch.ones(1),),  # type: ignore[arg-type]  # not looked at
    )
    with pytest.raises(RunError, match="differs from the tokenizer by nan"):
        graph.check(lambda values: [values * torch.nan], "encoder.onnx", 1e-3)


def _grid_norm(model: RPiAE) -> None:
    model.feature_mean, model.feature_var = torch.zeros(32, 3, 5), torch.ones(32, 3, 5)


@pytest.mark.parametrize(
    ("parts", "options", "message"),
    [
        (("vit", "tvb4x4", "vit"), {"size": (32, 32)}, "this tokenizer's bridge works along time"),
        (("vit", "vb4", "video-vit"), {"dynamic": True}, "this tokenizer's decoder works along"),
        (("vit", "vb4", "vit"), {}, "not known what size this tokenizer was trained on"),
        (("vit", "vb4", "vit"), {"size": (4100, 16)}, "4100×16 pixels are 4,100 tokens"),
        (("vit", "vb4", "vit"), {"size": (8, 8), "dynamic": True}, "leave one of them out"),
        (("vit", "vb4", "vit"), {"size": (8, 8), "dtype": "fp46"}, "Did you mean 'fp16'"),
    ],
)
@pytest.mark.parametrize("to", ["torch-export", "onnx"])
def test_what_no_graph_can_be_made_of(
    tmp_path: Path, to: str, parts: tuple[str, str, str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        export_model(tokenizer(*parts), to=to, out=tmp_path / "there", **options)
    assert not list(tmp_path.iterdir())


def test_statistics_of_a_grid_fix_the_size() -> None:
    model = tokenizer()
    q = model.decoder.patch[1]
    _grid_norm(model)
    with pytest.raises(UsageError, match=rf"of 3×5 tokens, and .* {3 * q}×{5 * q} is a size that"):
        sizes_of(model, size=(8 * q, 8 * q), dynamic=False)
    with pytest.raises(UsageError, match="its images have one size"):
        sizes_of(model, size=None, dynamic=True)
    assert sizes_of(model, size=(3 * q - 1, 5 * q), dynamic=False).fixed == (3 * q - 1, 5 * q)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["--to", "onxn"], "no target named 'onxn'. Did you mean 'onnx'"),
        (["--to", "reference", "--dynamic"], "dynamic does not go with reference, only with"),
        (["--to", "diffusers", "--dtype", "fp16"], "dtype does not go with diffusers, only with"),
        (["--to", "diffusers", "--size", "8", "9"], "diffusers has squares alone: 8×9"),
        (["--to", "onnx", "--dtype", "bf16"], "onnxruntime does not compute in bf16 on CPUs"),
        (["--to", "onnx", "--size", "8", "--dynamic"], "--size: expected 2 arguments"),
    ],
)
def test_what_the_command_line_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str], message: str
) -> None:
    save_tokenizer(tokenizer(), tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), "--out", str(tmp_path / "o"), *command]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(UsageError, match="exists already: name a new folder"):
        export_model(tokenizer(), to="torch-export", out=tmp_path, size=(16, 16))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_generator_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "g" / "generator").mkdir(parents=True)
    (tmp_path / "g" / "generator" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds a generator and no tokenizer"):
        export_model(tmp_path / "g", to="onnx", out=tmp_path / "there")
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_library_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf'{name} is not .* "rpiae\[interop\]"'):
        export_model(tokenizer(), to="onnx", out=tmp_path / "there", size=(16, 16))
    assert not list(tmp_path.iterdir())


def test_a_part_that_cannot_be_traced_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tokenizer(decoder="conv")
    forward = type(model.encoder).forward

    def looking(self: nn.Module, images: Tensor) -> Any:
        return forward(self, images) if images.sum().item() > 0 else None

    monkeypatch.setattr(type(model.encoder), "forward", looking)
    with pytest.raises(
        RunError, match=r"torch\.export cannot trace the encoder: .*Export one fixed size"
    ):
        export_model(model, to="torch-export", out=tmp_path / "there", dynamic=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_is_there_and_takes_its_options(name: str) -> None:
    target = TARGETS[name]
    assert target.options <= set(inspect.signature(target.load()).parameters)
