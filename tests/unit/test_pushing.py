"""What is pushed to the hub: whole models, with a card, and nothing of the machine that they are from."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

import rpiae
from rpiae import runs
from rpiae.core.config.recipe import RunConfig
from rpiae.core.config.tree import read_toml
from rpiae.core.errors import CheckpointError, RunError, UsageError
from rpiae.core.model.folders import load_tokenizer, save_tokenizer
from rpiae.core.model.places import recorded_word
from rpiae.evaluation.configs import EvaluationConfig
from rpiae.evaluation.saved import evaluate_saved
from rpiae.interop.hub.card import Described, model_card
from rpiae.interop.hub.paths import without_paths
from rpiae.interop.hub.pushing import write_repository
from tests.commands import rpiae as command
from tests.hub import TOKEN, Hub, hub_at_work
from tests.short_run import short_run, write_images
from tests.toy_generators import toy_tokenizer, write_run
from tests.toys import ENCODERS

NAME = "somebody/toy"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run whose data, weights and results lie in folders with telling names, measured once."""
    folder = tmp_path_factory.mktemp("secret-place")
    images = write_images(folder / "my photos", count=8)
    pivot = toy_tokenizer(1).roles["encoder"]
    save_file(pivot.state_dict(), folder / "pivot-weights.safetensors")
    tree = short_run(images, folder / "run", max_steps=1, metrics=["psnr"], evaluate_every=0)
    weights = {"weights": str(folder / "pivot-weights.safetensors"), "pretrained": True}
    tree["encoder"] = {**ENCODERS["vit"], **weights}
    tree["data"]["workers"] = 0
    for _ in runs.run(tree):
        pass
    config = EvaluationConfig(data=f"folder:{images}", metrics=("psnr", "ssim"), image_size=32)
    evaluate_saved(folder / "run", config)
    return folder / "run"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with hub_at_work(tmp_path / "cache") as made:
        yield made


def texts(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text("utf-8")
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".safetensors"
    }


def leaks(text: str, *names: str) -> list[str]:
    """Absolute paths in a text, and other names that do not belong there."""
    rest = re.sub(r"https?://\S+", "", text)
    return [*re.findall(r"(?<![\w.*/])/\w[\w/.-]*", rest), *(n for n in names if n in text)]


# The folder


def test_a_run_is_written_whole_and_without_its_machine(run: Path, tmp_path: Path) -> None:
    out, _ = command("push", str(run), NAME, "--dry-run", "--out", "there", cwd=tmp_path)
    folder = tmp_path / "there"
    names = {"README.md", "config.json", "config.toml", "evaluation.json", "model.safetensors"}
    assert {path.name for path in folder.iterdir()} == names
    assert all(name in out for name in names)
    for name, text in texts(folder).items():
        assert not leaks(text, "secret-place", "pytest"), name
    model, before = load_tokenizer(folder), load_tokenizer(run)
    assert all(map(torch.equal, model.state_dict().values(), before.state_dict().values()))
    again = runs.resolve(read_toml(folder / "config.toml")).config
    assert isinstance(again, RunConfig)
    assert (again.out, again.data.path) == ("run", "my photos")  # type: ignore[union-attr]
    assert again.encoder.weights == "pivot-weights.safetensors"  # type: ignore[attr-defined]


def test_the_card_says_what_is_known(run: Path, tmp_path: Path) -> None:
    write_repository(run, tmp_path / "there", repository=NAME)
    card = ModelCard.load(tmp_path / "there" / "README.md")
    assert card.data.library_name == "rpiae"
    assert {"rpiae", "tokenizer"} <= set(card.data.tags)
    assert card.data.pipeline_tag == "image-to-image"
    psnr = next(each for each in card.data.eval_results if each.metric_type == "psnr")
    kept = json.loads((run / "evaluation.json").read_text())
    assert psnr.metric_value == kept["metrics"]["psnr"]
    assert psnr.metric_args["images_sha256"] == kept["protocol"]["images_sha256"]
    assert psnr.metric_args["crop"] == kept["protocol"]["crop"]
    text = card.text
    for said in (
        f'rpiae.load("{NAME}")', "pip install rpiae", "`vb4`", "recipe `quick`", "`tune`", "`pivot`",
        "my photos", "crops of 32 pixels", "`psnr`", "`ssim`", "precision `fp32`", "Licences",
        "licence", f"{kept['metrics']['psnr']:.5g}", "At the end of its training",
    ):  # fmt: skip
        assert said.lower() in text.lower(), said


def test_numbers_of_other_weights_stay_behind(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    model = load_tokenizer(copy)
    next(model.parameters()).data += 1
    save_tokenizer(model, copy / "tokenizer")
    assert "evaluation.json" not in write_repository(copy, tmp_path / "there", repository=NAME)


def test_a_generator_is_written_with_its_tokenizer(tmp_path: Path) -> None:
    place = write_run(tmp_path / "runs" / "g", names=("a|b", "`c`", "<d>"))
    files = write_repository(place, tmp_path / "there", repository=NAME)
    parts = [
        f"{p}/{f}" for p in ("generator", "tokenizer") for f in ("config.json", "model.safetensors")
    ]
    assert files == sorted(["README.md", *parts])
    for name, text in texts(tmp_path / "there").items():
        assert not leaks(text, str(tmp_path)), name
    shutil.rmtree(tmp_path / "runs")
    samples = rpiae.load_generator(tmp_path / "there").sample(["a|b"], steps=1)
    assert samples.shape == (1, 3, 8, 8)
    card = ModelCard.load(tmp_path / "there" / "README.md")
    assert f'rpiae.load_generator("{NAME}")' in card.text
    assert "`a\\|b`, `'c'`, `<d>`" in card.text


def test_a_weights_path_in_a_tokenizer_does_not_part_it_from_its_generator(
    run: Path, tmp_path: Path
) -> None:
    place = write_run(tmp_path / "g")
    own = rpiae.load_generator(place)
    facts = own.model.facts
    tokenizer = load_tokenizer(run)
    shape = tokenizer.latent_shape(32, 32)
    assert shape[0] == facts.shape[0]
    shutil.rmtree(place / "tokenizer")
    shutil.copytree(run / "tokenizer", place / "tokenizer")
    config = json.loads((place / "generator" / "config.json").read_text())
    config["latents"]["tokenizer_sha256"] = _digest(tokenizer)
    bare = {name: value for name, value in config.items() if "sha256" not in name}
    (place / "generator" / "config.json").write_text(json.dumps(bare))
    write_repository(place, tmp_path / "there", repository=NAME)
    assert rpiae.load_generator(tmp_path / "there").model.num_classes == 3


def _digest(tokenizer: rpiae.RPiAE) -> str:
    from rpiae.latents.encoding import tokenizer_digest

    return tokenizer_digest(tokenizer)


def test_a_generator_s_numbers_say_how_it_was_sampled(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", count=6, size=32)
    write_run(tmp_path / "g")
    command(
        "eval", "g", "--data", f"folder:{images}", "--metrics", "gfd:tiny", "--count", "4", "--steps",
        "3", cwd=tmp_path,
    )  # fmt: skip
    files = write_repository(tmp_path / "g", tmp_path / "there", repository=NAME)
    assert "evaluation.json" in files
    card = ModelCard.load(tmp_path / "there" / "README.md")
    for said in (
        "samples.steps `3`",
        "samples.count `4`",
        "samples.seed `0`",
        "real.location `images`",
    ):
        assert said in card.text
    assert card.data.eval_results[0].metric_args["samples.steps"] == 3
    for name, text in texts(tmp_path / "there").items():
        assert not leaks(text, str(tmp_path)), name


def test_models_in_memory_are_written_too(tmp_path: Path) -> None:
    model = toy_tokenizer().to(torch.bfloat16)
    write_repository(model, tmp_path / "t", repository=NAME)
    saved = load_file(tmp_path / "t" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    generator = rpiae.load_generator(write_run(tmp_path / "run"))
    write_repository(generator, tmp_path / "g", repository=NAME)
    assert rpiae.load_generator(tmp_path / "g").model.num_classes == 3
    assert "How it was trained was not written down" in (tmp_path / "t" / "README.md").read_text()


@pytest.mark.parametrize("damage", ["nan", "cut", "renamed", "no config", "nothing"])
def test_what_is_damaged_is_not_written(damage: str, tmp_path: Path) -> None:
    folder = save_tokenizer(toy_tokenizer(), tmp_path / "t")
    weights = folder / "model.safetensors"
    state = load_file(weights)
    name = "decoder.blocks.0.attn.qkv.weight"
    if damage == "nan":
        model = load_tokenizer(folder)
        model.get_parameter(name).data[0, 0] = float("nan")
        save_tokenizer(model, folder)
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "renamed":
        save_file({n if n != name else f"{n}x": t for n, t in state.items()}, weights)
    elif damage == "no config":
        (folder / "config.json").unlink()
    else:
        shutil.rmtree(folder)
    with pytest.raises(CheckpointError):
        write_repository(folder, tmp_path / "there", repository=NAME)
    assert {path.name for path in tmp_path.iterdir()} <= {"t"}


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    write_repository(toy_tokenizer(), tmp_path / "there", repository=NAME)
    before = texts(tmp_path / "there")
    with pytest.raises(UsageError, match="is not empty and is left alone"):
        write_repository(toy_tokenizer(1), tmp_path / "there", repository=NAME)
    assert texts(tmp_path / "there") == before


# The push


def test_a_push_is_one_commit_that_loads(hub: Hub, run: Path, tmp_path: Path) -> None:
    out, _ = command(
        "push", str(run), NAME, "--private", "--message", "first", "--json", cwd=tmp_path
    )
    told = json.loads(out)
    repository = hub.repositories[NAME]
    assert repository.private
    assert len(repository.commits) == 2
    assert told["commit"] == repository.branches["main"]
    assert sorted(told["files"]) == sorted(repository.files)
    assert told["replaced"] == told["others"] == []
    card = repository.files["README.md"].decode()
    example = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert example is not None
    names: dict[str, Any] = {"images": torch.rand(1, 3, 32, 32)}
    exec(example[1], names)
    assert names["images"].shape == (1, 3, 32, 32)
    pushed, own = rpiae.load(NAME).state_dict(), rpiae.load(run).state_dict()
    assert all(map(torch.equal, pushed.values(), own.values()))
    assert not list(tmp_path.glob("*.part"))


def test_what_was_there_is_told(hub: Hub, tmp_path: Path) -> None:
    hub.create(NAME).commit({"README.md": b"by hand", "notes.txt": b"kept"})
    pushed = rpiae.push_to_hub(toy_tokenizer(), NAME)
    assert (pushed.replaced, pushed.others) == (("README.md",), ("notes.txt",))
    assert hub.repositories[NAME].files["notes.txt"] == b"kept"
    rpiae.push_to_hub(toy_tokenizer(1), NAME, revision="next")
    repository = hub.repositories[NAME]
    assert repository.branches["next"] != repository.branches["main"] == pushed.commit
    assert (
        repository.files["model.safetensors"]
        != repository.commits[repository.branches["next"]]["model.safetensors"]
    )


def test_private_things_do_not_go_into_a_public_repository(hub: Hub) -> None:
    before = dict(hub.create(NAME).branches)
    with pytest.raises(UsageError, match="is there already and public"):
        rpiae.push_to_hub(toy_tokenizer(), NAME, private=True)
    assert hub.repositories[NAME].branches == before


@pytest.mark.parametrize(
    ("status", "token", "said"),
    [
        (0, "", "the hub has to know who you are: log in with `hf auth login` or set HF_TOKEN"),
        (0, "hf_other", "does not let this token do that"),
        (403, TOKEN, "does not let this token do that"),
    ],
)
def test_who_may_not_push_is_told(
    status: int, token: str, said: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    if status:
        hub.errors["/api/repos/create"] = status
    save_tokenizer(toy_tokenizer(), tmp_path / "t")
    _, err = command("push", "t", NAME, cwd=tmp_path, code=1)
    assert said in err
    assert NAME not in hub.repositories


def test_offline_nothing_is_pushed_and_a_dry_run_asks_nobody(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RunError, match="HF_HUB_OFFLINE is set"):
        rpiae.push_to_hub(toy_tokenizer(), NAME)
    save_tokenizer(toy_tokenizer(), tmp_path / "t")
    command("push", "t", NAME, "--dry-run", cwd=tmp_path)
    assert (tmp_path / "toy" / "README.md").is_file()
    assert not hub.asked


def test_names_and_options_that_make_no_sense(hub: Hub, tmp_path: Path) -> None:
    save_tokenizer(toy_tokenizer(), tmp_path / "t")
    for words in (
        ("t", "name-alone"), ("t", "a/b/c"), ("t", "../b"), ("t", "a/b@main"), ("t", "a b/c"),
        ("t", NAME, "--out", "there"), ("t", NAME, "--revision", "a b"),
    ):  # fmt: skip
        command("push", *words, cwd=tmp_path, code=2)
    assert not hub.asked
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


# Verbs


def test_verbs_take_models_of_the_hub(hub: Hub, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", count=6, size=32)
    hub.create(NAME).add(save_tokenizer(toy_tokenizer(), tmp_path / "t"))
    commit = hub.repositories[NAME].branches["main"]
    shutil.rmtree(tmp_path / "t")
    data = f"folder:{images}"
    command("reconstruct", NAME, str(images / "00.png"), "--out", "r.png", cwd=tmp_path)
    out, _ = command("eval", NAME, "--data", data, "--metrics", "psnr", cwd=tmp_path)
    assert f"{NAME}@{commit}" in out
    assert "all of it is in" not in out
    command("encode", f"{NAME}@main", data, "--out", "latents", cwd=tmp_path)
    index = json.loads((tmp_path / "latents" / "index.json").read_text())
    assert index["tokenizer"]["path"] == f"{NAME}@{commit}"
    command("decode", "latents", "--out", "pictures", "--limit", "1", cwd=tmp_path)
    command("stats", NAME, data, "--dry-run", cwd=tmp_path)
    _, err = command("stats", NAME, data, cwd=tmp_path, code=2)
    assert "is not yours to write in" in err
    _, err = command(
        "reconstruct",
        f"{NAME}@nope",
        str(images / "00.png"),
        "--out",
        "s.png",
        cwd=tmp_path,
        code=1,
    )
    assert "it has no revision 'nope'" in err
    assert not (tmp_path / "s.png").exists()


def test_verbs_take_generators_of_the_hub(hub: Hub, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", count=6, size=32)
    hub.create(NAME).add(write_run(tmp_path / "g"))
    own = hub.create("somebody/tokenizer")
    own.add(tmp_path / "g" / "tokenizer")
    shutil.rmtree(tmp_path / "g")
    command(
        "sample", NAME, "--tokenizer", "somebody/tokenizer", "--classes", "cat", "--steps", "1",
        "--out", "s.png", cwd=tmp_path,
    )  # fmt: skip
    assert (tmp_path / "s.png").is_file()
    data = f"folder:{images}"
    out, _ = command(
        "eval",
        NAME,
        "--data",
        data,
        "--metrics",
        "gfd:tiny",
        "--count",
        "4",
        "--steps",
        "1",
        cwd=tmp_path,
    )
    assert f"{NAME}@{hub.repositories[NAME].branches['main']}" in out
    command("encode", "somebody/tokenizer", data, "--out", "latents", cwd=tmp_path)
    out, _ = command(
        "diffuse", "latents", "--tokenizer", "somebody/tokenizer", "--generator", "dit-s", "--dry-run",
        "--set", "generator.width=16", "--set", "generator.num_heads=2", "--set", "generator.depth=1",
        cwd=tmp_path,
    )  # fmt: skip
    assert f"somebody/tokenizer@{own.branches['main']}" in out


def test_what_a_file_says_leads_to_the_hub_by_a_commit_alone(hub: Hub, tmp_path: Path) -> None:
    commit = hub.create(NAME).add(save_tokenizer(toy_tokenizer(), tmp_path / "t"))
    for said in (NAME, f"{NAME}@main"):
        assert recorded_word(said) == Path(said)
    assert recorded_word(f"{NAME}@{commit}") == f"{NAME}@{commit}"


def test_a_run_begins_from_a_model_of_the_hub_at_its_commit(hub: Hub, tmp_path: Path) -> None:
    hub.create(NAME).add(save_tokenizer(toy_tokenizer(), tmp_path / "t"))
    commit = hub.repositories[NAME].branches["main"]
    resolved = runs.resolve({"init": NAME, "recipe": "quick", "data": "sample"})
    assert resolved.config.init == f"{NAME}@{commit}"
    assert resolved.config.encoder.width == 32  # type: ignore[attr-defined]  # of a ViT


# Paths


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("/home/me/photos", "photos"),
        ("/home/me/my photos/", "my photos"),
        ("folder:/home/me/photos", "folder:photos"),
        ("file:///home/me/photos", "file:photos"),
        ("4 images of /home/me/photos, held out", "4 images of photos, held out"),
        ("(/a/b): /c/d; ~/e/f", "(b): d; f"),
        ("C:\\Users\\me\\photos", "photos"),
        ("\\\\server\\share\\photos", "photos"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("timm/vit_base", "timm/vit_base"),
        ("hf:ILSVRC/imagenet-1k", "hf:ILSVRC/imagenet-1k"),
        ("3/4 of them, and/or 1 / 2", "3/4 of them, and/or 1 / 2"),
        ("package:tiny.safetensors", "package:tiny.safetensors"),
        ("decoder.blocks.0.*", "decoder.blocks.0.*"),
    ],
)
def test_paths_become_their_last_names(value: str, wanted: str) -> None:
    assert without_paths(value) == wanted
    assert without_paths({"a": [value, 1, None]}) == {"a": [wanted, 1, None]}


def test_a_path_that_is_named_alone_is_known_in_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as inside:
        inside.chdir(tmp_path)
        Path("data", "my set").mkdir(parents=True)
        tree: dict[str, Any] = {
            "path": "/mnt/a b/c",
            "said": "of /mnt/a b/c, and data/my set, whole",
        }
        cleaned = without_paths(tree, {"also": "data/my set"})
    assert cleaned == {"path": "c", "said": "of c, and my set, whole"}


def test_a_card_of_hub_and_licence() -> None:
    from rpiae.core.model.resolve import part_config

    encoder = part_config("encoders", "dinov2-b")
    described = Described(
        kind="tokenizer", repository=NAME, parameters={}, parts={"encoder": encoder},
        run={"data": {"name": "hf", "path": "ILSVRC/imagenet-1k"}, "init": "other/model@main"},
    )  # fmt: skip
    card = ModelCard(model_card(described))
    assert card.data.license == "apache-2.0"
    assert card.data.base_model == ["other/model", encoder.repository()]
    assert card.data.datasets == ["ILSVRC/imagenet-1k"]
    assert encoder.repository() in card.text
    dinov3 = part_config("encoders", "dinov3-b")
    other = ModelCard(
        model_card(
            Described(kind="tokenizer", repository=NAME, parameters={}, parts={"encoder": dinov3})
        )
    )
    assert (other.data.license, other.data.license_name) == ("other", "dinov3-license")
