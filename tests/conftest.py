"""What every test can use: the offline hub, the data folder, a tiny GPT-2, and the proof that a model is untouched."""

from __future__ import annotations

import os

# Read by huggingface_hub and transformers when they are imported: before any test imports them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.pop("PROBEKIT_BLOCK_PLUGINS", None)

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from probekit.testing import fingerprint

if TYPE_CHECKING:
    from torch import nn

# A shell starts what it runs in the background with interrupts ignored; these tests send them to themselves.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
DATA_VARIABLE = "PROBEKIT_TEST_DATA"

# The files that take longest. They come first, so that none of them is begun when the other workers have nothing left;
# pytest-xdist by itself begins with the files of most tests, and most of these have few.
LONGEST = (
    "test_wheel.py",
    "test_quickstart.py",
    "test_new_plugin.py",
    "test_example_plugins.py",
    "forward/test_every_architecture.py",
    "forward/test_architectures.py",
    "forward/test_sequences.py",
    "analyses/test_leaves_no_trace.py",
    "runs/test_resume.py",
    "runs/test_studies.py",
    "models/test_matrix.py",
)

TRAINING_TEXT = [
    "The sky is blue and the sea is green.",
    "Once upon a time, there was a little girl named Lily.",
    "What does a layer of the model still know about its input?",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {ROOT / "tests" / file: place for place, file in enumerate(LONGEST)}
    assert all(path.is_file() for path in places)
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="module", autouse=True)
def threads_stay() -> Iterator[None]:
    """Gives torch its number of threads back after each module: with another one, tests that come later and compare
    with another process would compute other bits. A benchmark's `main` sets it.
    """
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with models and texts for tests. A test that uses it is marked `data`.

    A continuous integration that names a folder means it: there a missing one fails.
    """
    named = os.environ.get(DATA_VARIABLE)
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        sentence = f"There is no test data in {folder}; name its folder in {DATA_VARIABLE}."
        if named and os.environ.get("CI"):
            pytest.fail(sentence)
        pytest.skip(sentence)
    return folder


def save_tokenizer(folder: Path) -> int:
    """Train a byte-level BPE of a few merges and save it; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>"
    )
    wrapped.save_pretrained(folder)
    return len(wrapped)


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that makes a GPT-2 of random weights with a tokenizer, saves it and returns its folder.

    Keyword arguments are GPT2Config's; by default 3 blocks of width 32, a context of 32 and the tokenizer's own
    vocabulary. Calls with the same arguments share one folder, so copy it before changing a file.
    """
    made: dict[tuple[tuple[str, Any], ...], Path] = {}

    def make(*, seed: int = 0, tokenizer: bool = True, **overrides: Any) -> Path:
        import torch
        from transformers import GPT2Config, GPT2LMHeadModel

        key = tuple(sorted({"seed": seed, "tokenizer": tokenizer, **overrides}.items()))
        if key in made:
            return made[key]
        folder = tmp_path_factory.mktemp("tiny-gpt2")
        vocabulary = save_tokenizer(folder) if tokenizer else 64
        settings = {
            "n_layer": 3,
            "n_embd": 32,
            "n_head": 2,
            "n_positions": 32,
            "vocab_size": vocabulary,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = GPT2LMHeadModel(GPT2Config(**(settings | overrides)))
        model.save_pretrained(folder)
        made[key] = folder
        return folder

    return make


@pytest.fixture(name="fingerprint")
def fingerprint_fixture() -> Callable[[nn.Module], dict[str, Any]]:
    """`fingerprint(model)`: compare one from before with one from after."""
    return fingerprint


@pytest.fixture
def assert_untouched() -> Callable[[nn.Module], AbstractContextManager[None]]:
    """`with assert_untouched(model): …` fails if the block left anything behind on the model, raised or not."""

    @contextmanager
    def untouched(model: nn.Module) -> Iterator[None]:
        before = fingerprint(model)
        try:
            yield
        finally:
            after = fingerprint(model)
            for what, was in before.items():
                assert after[what] == was, f"the block changed the model's {what}"

    return untouched


@dataclass(frozen=True)
class Ended:
    """A call of the command line that came to its end."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one sentence that says what was wrong, without its "Error: "; fails if there are more or none."""
        lines = self.err.splitlines()
        assert "Traceback" not in self.err, self.err
        sentences = [line for line in lines if line.startswith("Error: ")]
        assert len(sentences) == 1, self.err
        assert lines[-1] == sentences[0], f"something follows the sentence: {self.err}"
        return sentences[0].removeprefix("Error: ")


@pytest.fixture
def probekit_cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """`probekit_cli("run", "--json")`: the command line, in this process."""
    from probekit.cli import main

    def call(*arguments: object) -> Ended:
        words = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "argv", ["probekit", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, captured.out, captured.err)

    return call


@pytest.fixture
def probekit_process(tmp_path: Path) -> Callable[..., Ended]:
    """`probekit_process("run", "--json", environment={…})`: the command line, in a process of its own.

    `code=…` runs Python code instead, with the arguments as its `sys.argv[1:]`.
    """

    def call(*arguments: object, code: str | None = None, environment: dict[str, str] | None = None) -> Ended:
        start = ["-m", "probekit"] if code is None else ["-c", code]
        finished = subprocess.run(
            [sys.executable, *start, *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | (environment or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Ended(finished.returncode, finished.stdout, finished.stderr)

    return call


@pytest.fixture
def install_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """`install_plugin("nice", source)`: a distribution `nice-plugin` 1.0 with an entry point `nice`, really installed.

    Its folder is returned, for the PYTHONPATH of another process; in this process it is on the path already.
    """
    folder = tmp_path / "installed plugins"
    before = set(sys.modules)

    def install(name: str, source: str, value: str = "") -> Path:
        module = "plugin_" + name.replace("-", "_")
        metadata = folder / f"{name.replace('-', '_')}_plugin-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-plugin\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[probekit]\n{name} = {value or module}\n")
        (folder / f"{module}.py").write_text(source)
        if str(folder) not in sys.path:
            monkeypatch.syspath_prepend(str(folder))
        return folder

    yield install
    for name in set(sys.modules) - before:
        if name.startswith("plugin_"):
            del sys.modules[name]
