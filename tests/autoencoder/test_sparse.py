"""Sparse autoencoders: trained to the bit as before, saved as SAELens saves, read without it; true features found."""

from __future__ import annotations

import importlib.util
import io
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from probekit import Context, UsageError
from probekit_plugins.autoencoder.modules import Autoencoder
from probekit_plugins.autoencoder.sparse import Sparse, read_sparse
from probekit_plugins.autoencoder.sparse_format import CONFIG_FILE, WEIGHT_FILE, sae_lens
from probekit_plugins.trainer import Step, train
from probekit_plugins.training_options import TrainingOptions

WIDTH, FEATURES, BATCH = 32, 64, 512
# Each variant with its k or λ.
VARIANTS: dict[str, float] = {"topk": 3, "batchtopk": 3, "l1": 1.0, "jumprelu": 1.0}
every_variant = pytest.mark.parametrize("variant", VARIANTS)
ABOUT = {"site": "block.-2", "model": "demo", "skip_first": 1, "figures": {"fve": 0.5, "error": None}}

pytestmark = pytest.mark.skipif(importlib.util.find_spec("sae_lens") is None, reason="SAELens is not installed")


@pytest.fixture(scope="module")
def first_import() -> dict[str, Any]:
    """The first import of SAELens in this process: what it prints, whom it calls, and what it leaves changed."""
    if "sae_lens" in sys.modules:
        return {}
    out, err = io.StringIO(), io.StringIO()
    calls: list[Any] = []
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(socket.socket, "connect", lambda _, address: calls.append(address))
        torch.manual_seed(3)
        before = _global_state()
        sae_lens("A test")
        same = [a == b if not isinstance(a, torch.Tensor) else torch.equal(a, b) for a, b in _pairs(before)]
    return {"printed": out.getvalue() + err.getvalue(), "calls": calls, "same": same}


@pytest.fixture(scope="module", autouse=True)
def package(first_import: dict[str, Any]) -> Any:
    return sae_lens("A test")


def _global_state() -> list[Any]:
    return [
        torch.random.get_rng_state().clone(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        sys.excepthook,
        sys.modules.get("kernels", "absent"),
    ]


def _pairs(before: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(before, _global_state(), strict=True)


class True64:
    """64 true features of norm 1 in 32 dimensions; each is in a sample with probability 0.05, uniform in [0, 1]."""

    def __init__(self, seed: int) -> None:
        directions = torch.randn(FEATURES, WIDTH, generator=torch.Generator().manual_seed(1000 + seed))
        self.directions = directions / directions.norm(dim=1, keepdim=True)
        self.seed = seed

    def batch(self, number: int, size: int = BATCH) -> torch.Tensor:
        generator = torch.Generator().manual_seed((self.seed << 32) + number)
        present = torch.rand(size, FEATURES, generator=generator) < 0.05
        return ((torch.rand(size, FEATURES, generator=generator) * present) @ self.directions)[:, None]

    def found(self, decoder: torch.Tensor) -> float:
        """The mean over the true features of the greatest cosine with a row of a decoder."""
        rows = decoder / decoder.norm(dim=1, keepdim=True).clamp(min=1e-9)
        return float((self.directions @ rows.T).max(1).values.mean())


def fve(x: torch.Tensor, decoded: torch.Tensor) -> float:
    return float(1 - (x - decoded).square().sum() / (x - x.mean(0)).square().sum())


def pca_fve(known: torch.Tensor, x: torch.Tensor, k: int) -> float:
    mean = known.mean(0)
    axes = torch.linalg.svd(known - mean, full_matrices=False).Vh[:k]
    return fve(x, (x - mean) @ axes.T @ axes + mean)


def made(variant: str, options: TrainingOptions, seed: int = 0, features: int = FEATURES) -> Sparse:
    module = Sparse(variant, WIDTH, features, VARIANTS[variant], options, seed)
    # Not centred and not of norm √d, so that neither can be forgotten.
    module.prepare(True64(seed).batch(10**6, 4096) * 3 + 1)
    return module


def trained(variant: str, steps: int, seed: int = 0, context: Context | None = None, rate: float = 2e-3) -> Sparse:
    options = TrainingOptions(steps=steps, batch=BATCH, learning_rate=rate)
    module, source = made(variant, options, seed), True64(seed)
    train(module, module.loss, lambda n: source.batch(n) * 3 + 1, options, context or Context(seed), variant)
    return module


@pytest.fixture(scope="module")
def small() -> dict[str, Sparse]:
    """Each variant after a few steps: enough for weights and thresholds that are not those of the beginning."""
    return {variant: trained(variant, 60) for variant in VARIANTS}


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    return True64(0).batch(7)[:, 0] * 3 + 1


def written(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return float((one - other).norm() / other.norm()) < 1e-5


def test_importing_it_is_silent_offline_and_leaves_torch_as_it_was(first_import: dict[str, Any]) -> None:
    if not first_import:
        pytest.skip("it was imported before")
    assert first_import == {"printed": "", "calls": [], "same": [True] * len(_global_state())}


@pytest.mark.slow
def test_importing_it_is_silent_in_a_process_of_its_own() -> None:
    code = (
        "import socket, torch\n"
        "def refused(*a): raise AssertionError(a)\n"
        "socket.socket.connect = refused\n"
        "from probekit_plugins.autoencoder.sparse_format import sae_lens\n"
        "before = torch.random.get_rng_state()\n"
        "sae_lens('A test')\n"
        "assert torch.equal(before, torch.random.get_rng_state()) and torch.is_grad_enabled()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_it_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(
        UsageError, match=r"^The variant 'topk' needs SAELens, which is not installed; install probekit"
    ):
        Sparse("topk", 8, 16, 2, TrainingOptions(), 0)


@pytest.mark.parametrize("k", [0, 65, 2.5])
def test_k_that_is_no_number_of_features_is_refused(k: float) -> None:
    with pytest.raises(UsageError, match=r"expected a whole number from 1 to 64"):
        Sparse("batchtopk", 32, FEATURES, k, TrainingOptions(), 0)


@every_variant
def test_weights_are_those_of_the_seed_and_torchs_generator_stays(variant: str) -> None:
    options = TrainingOptions()
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one, torch_moved = made(variant, options, 5), not torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    again, other = made(variant, options, 5), made(variant, options, 6)
    assert not torch_moved
    assert torch.equal(one.sae.W_enc, again.sae.W_enc)
    assert torch.equal(one.sae.W_dec, again.sae.W_dec)
    assert not torch.equal(one.sae.W_dec, other.sae.W_dec)


class Kept:
    """A store in memory that saves after every step and asks to stop once, after `stop_after` of them."""

    def __init__(self, stop_after: int) -> None:
        self.saved: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
        self.left = stop_after

    def read(self, kind: str, label: str) -> dict[str, torch.Tensor] | None:
        found = self.saved.get((kind, label))
        return None if found is None else dict(found)

    def write(self, kind: str, label: str, state: dict[str, torch.Tensor]) -> None:
        self.saved[kind, label] = {name: tensor.detach().clone() for name, tensor in state.items()}

    def due(self) -> bool:
        return True

    def stop_asked(self) -> bool:
        self.left -= 1
        return self.left == 0


@every_variant
def test_an_interrupted_training_ends_with_the_same_bits(variant: str, small: dict[str, Sparse]) -> None:
    store = Kept(37)  # past the dead-latent window of 20 steps
    with pytest.raises(KeyboardInterrupt):
        trained(variant, 60, context=Context(0, store=store))
    resumed = trained(variant, 60, context=Context(0, store=store))
    whole, found = small[variant].state_dict(), resumed.state_dict()
    assert all(torch.equal(whole[name], found[name]) for name in whole)
    assert resumed.files(ABOUT) == small[variant].files(ABOUT)


def test_activations_are_scaled_to_a_mean_squared_norm_of_d_about_their_mean() -> None:
    module, rows = made("l1", TrainingOptions()), True64(0).batch(10**6, 4096)[:, 0] * 3 + 1
    assert float(((rows - rows.mean(0)) * module.scale).square().sum(1).mean()) == pytest.approx(WIDTH, rel=1e-4)
    assert close(module.decode(torch.zeros(1, FEATURES)), rows.mean(0)[None])
    still = Sparse("l1", WIDTH, FEATURES, 1.0, TrainingOptions(), 0)
    still.prepare(torch.ones(4, 1, WIDTH))
    assert float(still.scale) == 1.0


@pytest.mark.parametrize(("variant", "penalised"), [("l1", True), ("jumprelu", True), ("topk", False)])
def test_the_penalty_rises_from_nothing(variant: str, penalised: bool) -> None:
    module, x = made(variant, TrainingOptions(steps=100)), True64(0).batch(3) * 3 + 1

    def loss(share: float) -> float:
        return float(module.loss(x, Step(0, share, torch.Generator())).detach())

    first, half, full, later = (loss(share) for share in (0.0, 0.025, 0.05, 0.8))
    assert (first < half < full) is penalised
    assert full == later
    assert half - first == pytest.approx((full - first) / 2, rel=1e-3, abs=1e-6)


def test_a_feature_that_is_dead_for_a_tenth_of_a_short_training_is_taught_again() -> None:
    module, x = made("topk", TrainingOptions(steps=300)), True64(0).batch(3) * 3 + 1
    with torch.no_grad():
        module.sae.b_enc[5] = -1000.0
    gradients = []
    for number in range(32):
        module.zero_grad()
        module.loss(x, Step(number, number / 300, torch.Generator())).backward()
        gradients.append(float(module.sae.W_dec.grad[5].abs().sum()))
    assert module.window == 30
    assert gradients[:31] == [0.0] * 31
    assert gradients[31] > 0


@every_variant
def test_sae_lens_loads_what_is_saved_and_so_do_we_without_it(
    variant: str, small: dict[str, Sparse], rows: torch.Tensor, tmp_path: Path, package: Any, monkeypatch: Any
) -> None:
    module = small[variant]
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    written(tmp_path, module.files(ABOUT))
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)  # the trained module stays as it is
    theirs = package.SAE.load_from_disk(str(tmp_path))
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    ours = read_sparse(tmp_path)
    with torch.no_grad():
        codes = theirs.encode(rows)
        assert 0 < int((codes > 0).sum()) < codes.numel()
        for module_or_file in (ours, module):
            assert close(module_or_file.encode(rows), codes)
            assert close(module_or_file.reconstruct(rows), theirs(rows))
        assert close(module.decode(codes), theirs.decode(codes))
        assert torch.equal(ours.reconstruct(rows.view(2, -1, WIDTH)).flatten(0, 1), ours.reconstruct(rows))
    assert (ours.width, ours.features) == (WIDTH, FEATURES)
    about = ours.config["metadata"]
    assert (about["model_name"], about["hook_name"], about["figures"]) == ("demo", "block.-2", ABOUT["figures"])


def test_what_is_saved_stands_in_an_order_of_its_own(small: dict[str, Sparse]) -> None:
    """SAELens' own order is that of a set, and so another one in each process."""
    config = json.loads(small["topk"].files(ABOUT)["cfg.json"])
    assert list(config) == sorted(config)
    assert list(config["metadata"]) == sorted(config["metadata"])


def test_batchtopk_is_saved_with_the_threshold_that_it_learnt(small: dict[str, Sparse], rows: torch.Tensor) -> None:
    codec = small["batchtopk"].inference().codec
    assert float(codec.threshold.min()) == float(codec.threshold.max()) > 0
    assert float((small["batchtopk"].encode(rows) > 0).sum(1).float().mean()) == pytest.approx(3, rel=0.3)


@pytest.mark.parametrize("variant", ["StandardTrainingSAE", "TopKTrainingSAE", "JumpReLUTrainingSAE"])
def test_what_sae_lens_own_trainer_saves_is_read(
    variant: str, rows: torch.Tensor, tmp_path: Path, package: Any
) -> None:
    own = {"k": 3} if variant.startswith("TopK") else {}
    # A checkpoint, not a model for inference: TopK's activations are rescaled by the decoder's norms there.
    with torch.random.fork_rng(devices=[]), redirect_stderr(io.StringIO()):
        torch.manual_seed(0)
        made_by = getattr(package, f"{variant}Config")(
            d_in=WIDTH, d_sae=FEATURES, apply_b_dec_to_input=variant != "StandardTrainingSAE", **own
        )
        sae = getattr(package, variant)(made_by)
        config = package.config.SAETrainerConfig(
            total_training_samples=20 * BATCH, train_batch_size_samples=BATCH, lr_end=3e-4
        )
        batches = (True64(0).batch(number)[:, 0] for number in range(1000))
        package.SAETrainer(config, sae, batches).fit()
    sae.save_model(tmp_path)
    ours, theirs = read_sparse(tmp_path), package.SAE.load_from_disk(str(tmp_path))
    with torch.no_grad():
        assert close(ours.encode(rows), theirs.encode(rows))
        assert close(ours.reconstruct(rows), theirs(rows))


def test_another_architecture_takes_sae_lens(
    rows: torch.Tensor, tmp_path: Path, package: Any, monkeypatch: Any
) -> None:
    gated = package.GatedSAE(package.GatedSAEConfig(d_in=WIDTH, d_sae=FEATURES))
    normalised = package.StandardSAE(
        package.StandardSAEConfig(d_in=WIDTH, d_sae=FEATURES, normalize_activations="layer_norm")
    )
    for name, sae in {"gated": gated, "normalised": normalised}.items():
        sae.save_model(tmp_path / name)
        with torch.no_grad():
            assert close(read_sparse(tmp_path / name).reconstruct(rows), sae(rows))
    transcoder = package.Transcoder(
        package.TranscoderConfig(d_in=WIDTH, d_out=WIDTH, d_sae=FEATURES, apply_b_dec_to_input=False)
    )
    transcoder.save_model(tmp_path / "transcoder")
    with pytest.raises(UsageError, match="is a transcoder"):
        read_sparse(tmp_path / "transcoder")
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    for name in ("gated", "normalised"):
        with pytest.raises(UsageError, match=r"needs SAELens, which is not installed"):
            read_sparse(tmp_path / name)


def test_batchtopk_is_read_while_it_is_still_trained(
    small: dict[str, Sparse], rows: torch.Tensor, tmp_path: Path
) -> None:
    module = small["batchtopk"]
    module.sae.save_model(tmp_path)  # SAELens itself reads none of these to encode with
    scaled = rows * module.scale
    with torch.no_grad():
        assert close(read_sparse(tmp_path).reconstruct(scaled) / module.scale, module.reconstruct(rows))


def test_a_config_of_an_old_sae_lens_is_read(
    small: dict[str, Sparse], rows: torch.Tensor, tmp_path: Path, package: Any
) -> None:
    files = small["l1"].files(ABOUT)
    old = {"d_in": WIDTH, "d_sae": FEATURES, "dtype": "float32", "device": "cpu", "normalize_activations": None}
    written(tmp_path, {**files, CONFIG_FILE: json.dumps({**old, "activation_fn_str": "relu"}).encode()})
    with torch.no_grad():
        assert close(read_sparse(tmp_path).reconstruct(rows), small["l1"].reconstruct(rows))
        kept = {**old, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2}}
        (tmp_path / CONFIG_FILE).write_text(json.dumps(kept))
        assert int((read_sparse(tmp_path).encode(rows) > 0).sum(1).max()) == 2  # by SAELens


def test_what_is_damaged_or_missing_is_named(small: dict[str, Sparse], tmp_path: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(UsageError, match=match) as caught:
            read_sparse(tmp_path)
        assert "\n" not in str(caught.value)

    refused("There is no sparse autoencoder in")
    files = small["topk"].files(ABOUT)
    config = json.loads(files[CONFIG_FILE])
    for text, match in (
        ("{", "is damaged"),
        ("[]", "expected a table"),
        ("[" * 100_000, "is damaged"),
        (json.dumps({**config, "architecture": 3}), "its architecture is 3"),
        (json.dumps({**config, "architecture": None}), "its architecture is None"),
        (json.dumps({**config, "d_in": "many"}), "d_in = 'many'; expected a number of at least 1"),
        (json.dumps({**config, "d_sae": FEATURES + 1}), r"has a \[32, 64\] tensor W_enc; expected \[32, 65\]"),
        (json.dumps({**config, "k": FEATURES + 1}), "says k = 65; expected 1 to 64"),
        (json.dumps({**config, "architecture": "jumprelu"}), "has no tensor threshold"),
        (json.dumps({**config, "architecture": "temporary"}), "SAELens does not read"),
    ):
        written(tmp_path, files)
        (tmp_path / CONFIG_FILE).write_text(text)
        refused(match)
    written(tmp_path, {**files, WEIGHT_FILE: files[WEIGHT_FILE][:100]})
    refused("missing or damaged")
    (tmp_path / WEIGHT_FILE).unlink()
    refused("missing or damaged")
    written(tmp_path, files)
    tensors = load_file(tmp_path / WEIGHT_FILE)
    tensors["b_dec"][0] = torch.nan
    save_file(tensors, tmp_path / WEIGHT_FILE)
    refused("holds NaN or infinity")


def against_the_truth(module: Autoencoder, decoder: torch.Tensor, seed: int) -> tuple[float, float, float]:
    """Mean greatest cosine with the true features, FVE on new samples, and L0."""
    x = torch.cat([True64(seed).batch(2 * 10**6 + number) for number in range(8)])[:, 0] * 3 + 1
    with torch.no_grad():
        codes = module.encode(x)
        return True64(seed).found(decoder), fve(x, module.decode(codes)), float((codes > 0).sum(1).float().mean())


def yardstick(variant: str, steps: int, seed: int, cosine: float, rate: float = 2e-3) -> float:
    """The mean greatest cosine of a trained one, which explains twice what as many principal components do.

    Failing controls: an untrained one finds no features and explains less, and so do codes of other samples.
    """
    module = trained(variant, steps, seed, rate=rate)
    decoder = module.inference().codec.W_dec
    assert isinstance(decoder, torch.Tensor)
    known, new = (True64(seed).batch(number * 10**6, 4096)[:, 0] * 3 + 1 for number in (1, 2))
    found, explained, active = against_the_truth(module, decoder, seed)
    bound = 2 * pca_fve(known, new, max(1, round(active)))
    assert explained >= bound

    untrained = made(variant, TrainingOptions(steps=steps), seed + 100)
    directions = untrained.inference().codec.W_dec
    assert isinstance(directions, torch.Tensor)
    poor, unexplained, _ = against_the_truth(untrained, directions, seed)
    assert poor < cosine - 0.1
    assert unexplained < bound
    # The codes of another sample each: the same L0 and the same magnitudes, at features that have nothing to do with x.
    with torch.no_grad():
        strangers = module.encode(new).roll(1, 0)
        assert fve(new, module.decode(strangers)) < 0
    return found


@pytest.mark.parametrize(("variant", "cosine"), [("l1", 0.9), ("jumprelu", 0.85), ("topk", 0.85), ("batchtopk", 0.8)])
def test_true_features_are_found_in_a_few_steps(variant: str, cosine: float) -> None:
    assert yardstick(variant, 600, 0, cosine, rate=6e-3) >= cosine


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "cosine"), [("l1", 0.99), ("jumprelu", 0.94), ("topk", 0.92), ("batchtopk", 0.83)])
def test_true_features_are_found(variant: str, cosine: float) -> None:
    found = [yardstick(variant, 2000, seed, cosine) for seed in range(3)]
    assert sum(found) / 3 >= cosine, found
    assert min(found) >= cosine - 0.02, found


def test_the_benchmark_gives_each_side_the_same_and_measures_what_is_saved() -> None:
    from benchmarks.outcome import Outcome
    from benchmarks.sparse_autoencoders import EQUAL, OURS, THEIRS, VARIANTS, Task, measure

    known, held = (True64(0).batch(number, 600)[:, 0] for number in (1, 2))
    outcome, task = Outcome(""), Task(known, held, 5)
    measure(outcome, "tiny", task, 1)
    assert set(task.found) == {(variant, side) for variant in VARIANTS for side in (OURS, THEIRS, EQUAL)}
    assert all(active == pytest.approx(8) for active in (task.found["topk", side][0][1] for side in (OURS, THEIRS)))
    assert sum(figure.goal is not None for figure in outcome.figures) == 4  # none where L0 differs
    task.note("topk", "the mean", lambda x: x, lambda x: x.mean(0).expand_as(x))
    assert task.found["topk", "the mean"][0][0] == pytest.approx(0, abs=1e-6)
