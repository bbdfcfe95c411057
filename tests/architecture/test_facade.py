"""``rpiae.plugin``: the names that stay, and that plugins and pages use nothing else of ours."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rpiae import plugin

ROOT = Path(__file__).parents[2]

#: Plugins of other people import these: one that is taken away or renamed breaks them.
PINNED = """
    Accumulator AdversarialConfig AdversarialTerm Batch Block BlockFeatures Bridge BridgeConfig
    BridgeDescription Causal CheckpointError ComparedMetric ConfigError Critic CriticConfig DataError Dataset
    DatasetConfig Decoder DecoderConfig DiagonalGaussian Encoder EncoderConfig EncoderDescription
    Entry Examination Features FetchError Fit Fittable FlowContext GaussianPosterior Generator
    GeneratorConfig Grid HeldOut LatentDataset LayeredDecoder LossConfig Manifest Measured Metric
    MetricConfig Past Patch Posterior Preset QuantisedPosterior Replica RpiaeError Seen StageSteps
    StepContext StepRandomness SyntheticClips SyntheticImages TemporalBlock TemporalBridge
    TemporalDecoder Term TrainedMetric UsageError Window as_dataset at_least at_least_fp32 attention block_index
    check_bridge check_builds check_critic check_dataset check_decoder check_encoder check_generator
    check_generator_builds check_loss check_manifest check_metric check_plugin download generator
    load_whole loaded_once local_weights map_grid map_to_tokens names_file names_revision per_frame
    read_weights rounding_only settings_only sincos_positions through tokens_to_map wired within
    without_effect
""".split()  # noqa: SIM905  # a list of words reads better so

#: What pages, plugins and the template may import of the package.
DOORS = {"rpiae", "rpiae.plugin"}

SOURCES = [
    *ROOT.glob("plugins/*/src/**/*.py"),
    *ROOT.glob("plugins/*/tests/**/*.py"),
    *ROOT.glob("examples/**/*.py"),
    *(ROOT / "rpiae" / "cli" / "template").rglob("*.py.in"),
]
PAGES = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("plugins/*/README.md")]


def test_the_names_that_stay() -> None:
    assert sorted(plugin.__all__) == PINNED


def test_every_name_is_there_and_known_to_type_checkers() -> None:
    assert all(getattr(plugin, name) is not None for name in PINNED)
    tree = ast.parse(Path(plugin.__file__).read_text("utf-8"))
    typed = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rpiae.")
        for alias in node.names
    }
    assert typed == plugin._WHERE


def test_a_name_that_is_not_there_is_an_ordinary_error() -> None:
    with pytest.raises(AttributeError, match=r"'rpiae\.plugin' has no attribute 'Tokenizer'"):
        plugin.Tokenizer  # noqa: B018  # looked up for its error


def test_the_names_that_configs_need_bring_no_torch() -> None:
    code = (
        "import sys\n"
        "from rpiae.plugin import BridgeConfig, Entry, Manifest, Preset, UsageError, at_least, wired\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def _imported(source: str) -> Iterator[str]:
    source = re.sub(r"\$\{?(\w+)\}?", r"\1", source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""


def _ours(source: str) -> set[str]:
    return {name for name in _imported(source) if name.split(".")[0] == "rpiae"} - DOORS


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_plugins_and_the_template_import_the_facade_alone(path: Path) -> None:
    assert not _ours(path.read_text("utf-8"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_import_and_name_the_facade_alone(path: Path) -> None:
    text = path.read_text("utf-8")
    blocks = re.findall(r"```python[^\n]*\n(.*?)```", text, flags=re.DOTALL)
    assert not set().union(*map(_ours, blocks))
    named = set(re.findall(r"\brpiae\.[a-z_]+\.[\w.]+", text))
    assert not {name for name in named if not name.startswith("rpiae.plugin.")}


def test_the_search_itself() -> None:
    assert _ours("import rpiae\nfrom rpiae.plugin import Entry\nimport torch") == set()
    assert _ours("if 1:\n    from rpiae.core.errors import UsageError") == {"rpiae.core.errors"}
