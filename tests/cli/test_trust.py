"""What a file may not grant: code, pickle, and the network. Each is asked of who calls, and of nobody else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

import probekit
from probekit.plugins import Plugins
from probekit.runs.config import resolve
from probekit.runs.studies import study
from probekit.runs.studies.cells import expand
from probekit.runs.studies.file import read_study

GRANTS = {"trust_remote_code": "--trust-remote-code", "allow_pickle": "--allow-pickle"}
SMALL = ["--plugin", "activation-statistics", "--input-ids", "1,2,3"]

# A model of its own code: GPT-2 under another name, which notes that its code ran.
OWN_CODE = """
from pathlib import Path
from transformers import GPT2Config, GPT2LMHeadModel

(Path(__file__).parent / "ran").touch()

class OwnConfig(GPT2Config):
    model_type = "own-code"

class OwnModel(GPT2LMHeadModel):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(tiny_gpt2: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model that needs code of its own, whose copy goes to a folder of the test."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "own"
    shutil.copytree(tiny_gpt2(n_layer=2), folder)
    (folder / "own_code.py").write_text(OWN_CODE, encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "own-code", "architectures": ["OwnModel"]}
    config["auto_map"] = {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture
def pickled(tiny_gpt2: Callable[..., Path], tmp_path: Path) -> Path:
    """A folder whose weights are pickled."""
    import torch
    from safetensors.torch import load_file

    folder = tmp_path / "pickled"
    shutil.copytree(tiny_gpt2(n_layer=2), folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def model_that_needs(grant: str, own_code: Path, pickled: Path) -> Path:
    return own_code if grant == "trust_remote_code" else pickled


def refusal(grant: str) -> str:
    return f"asks for {grant}, which no file can grant"


@pytest.mark.parametrize("grant", GRANTS)
def test_a_model_that_needs_a_grant_runs_with_it_and_is_refused_without(
    grant: str, own_code: Path, pickled: Path, probekit_cli: Any, tmp_path: Path
) -> None:
    model, flag = model_that_needs(grant, own_code, pickled), GRANTS[grant]
    ended = probekit_cli("run", "--model", model, *SMALL, "--output", tmp_path / "run")
    assert ended.code == 4
    assert flag in ended.sentence
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.glob("modules/**/ran"))
    ended = probekit_cli("run", "--model", model, *SMALL, flag, "--output", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert flag in json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["command"]


@pytest.mark.parametrize("grant", GRANTS)
def test_a_config_file_grants_nothing_and_the_flag_beside_it_does(
    grant: str, probekit_cli: Any, tmp_path: Path
) -> None:
    # Whatever it is called: a name is no credential.
    file = tmp_path / "command line"
    file.write_text(tomli_w.dumps({"model": {"name": "demo", grant: True}}), encoding="utf-8")
    ended = probekit_cli("run", "--config", file, *SMALL, "--dry-run")
    assert ended.code == 2
    assert refusal(grant) in ended.sentence
    assert ended.sentence.endswith(f"say {GRANTS[grant]} yourself.")
    other = next(flag for flag in GRANTS.values() if flag != GRANTS[grant])
    assert probekit_cli("run", "--config", file, *SMALL, "--dry-run", other).code == 2
    assert probekit_cli("run", "--config", file, *SMALL, "--dry-run", GRANTS[grant]).code == 0
    file.write_text(tomli_w.dumps({"model": {"name": "demo", grant: False}}), encoding="utf-8")
    assert probekit_cli("run", "--config", file, *SMALL, "--dry-run").code == 0


@pytest.mark.parametrize("said", [True, "true", "yes", 1])
def test_however_a_file_says_it_it_is_not_granted(said: object) -> None:
    with pytest.raises(probekit.UsageError, match="which no file can grant"):
        resolve([("command line", {"model": {"trust_remote_code": said}})], Plugins())


@pytest.mark.parametrize("grant", GRANTS)
def test_a_run_begun_with_a_grant_needs_it_again_to_go_on(
    grant: str, own_code: Path, pickled: Path, probekit_cli: Any, tmp_path: Path
) -> None:
    model, flag, run = model_that_needs(grant, own_code, pickled), GRANTS[grant], tmp_path / "run"
    assert probekit_cli("run", "--model", model, *SMALL, flag, "--output", run).code == 0
    whole = {path.relative_to(run): path.read_bytes() for path in run.glob("analyses/*/*.json")}
    manifest = json.loads((run / "run.json").read_text(encoding="utf-8"))
    manifest["status"] = "interrupted"
    (run / "run.json").write_text(json.dumps(manifest), encoding="utf-8")
    for analysis in run.glob("analyses/*"):
        shutil.rmtree(analysis)
    ended = probekit_cli("run", "--resume", run)
    assert ended.code == 2
    assert refusal(grant) in ended.sentence
    with pytest.raises(probekit.UsageError, match="which no file can grant"):
        probekit.resume(run)
    ended = probekit_cli("run", "--resume", run, flag)
    assert ended.code == 0, ended.err
    assert {path.relative_to(run): path.read_bytes() for path in run.glob("analyses/*/*.json")} == whole


def test_resume_takes_grants_and_nothing_else_of_a_model(probekit_cli: Any, tmp_path: Path) -> None:
    ended = probekit_cli("run", "--resume", tmp_path, "--trust-remote-code", "--dtype", "float64")
    assert ended.code == 2
    assert "leave out --model" in ended.sentence


@pytest.mark.parametrize("grant", GRANTS)
def test_a_study_grants_nothing_to_its_models_and_who_calls_it_does(
    grant: str, own_code: Path, pickled: Path, probekit_cli: Any, tmp_path: Path
) -> None:
    model, file = model_that_needs(grant, own_code, pickled), tmp_path / "study.toml"
    run = {"model": {"name": str(model), grant: True}, "plugins": ["activation-statistics"], "input_ids": [[1, 2, 3]]}
    file.write_text(tomli_w.dumps({"title": "A study", "runs": {"one": run}}), encoding="utf-8")
    ended = probekit_cli("study", file, "--output", tmp_path / "out")
    assert ended.code == 2
    assert refusal(grant) in ended.sentence
    assert not (tmp_path / "out").exists()
    with pytest.raises(probekit.UsageError, match="which no file can grant"):
        study(file, tmp_path / "out")
    ended = probekit_cli("study", file, "--output", tmp_path / "out", GRANTS[grant])
    assert ended.code == 0, ended.err


def test_a_worker_takes_what_was_granted_where_the_study_was_called(tmp_path: Path) -> None:
    from probekit.runs.config import grants_of

    file = tmp_path / "study.toml"
    run = {"model": {"name": "demo", "trust_remote_code": True}, "plugins": ["activation-statistics"]}
    file.write_text(tomli_w.dumps({"title": "A study", "runs": {"one": run}}), encoding="utf-8")
    plugins = Plugins()
    [cell] = expand(read_study(file, {}), plugins, ["trust_remote_code"])
    again = resolve([(cell.run, cell.values)], plugins, grants_of(cell.values))
    assert again.config == cell.resolved.config
    assert again.config.model.trust_remote_code


def test_the_keys_of_cells_without_grants_are_what_they_were(tmp_path: Path) -> None:
    plain = resolve([("python", {})], Plugins()).document()["configuration"]["model"]
    assert "allow_pickle" not in plain
    assert plain["trust_remote_code"] is False


@pytest.mark.parametrize("grant", GRANTS)
def test_a_recording_grants_nothing_to_those_who_read_it(grant: str, probekit_cli: Any, tmp_path: Path) -> None:
    recording = tmp_path / "recording"
    assert probekit_cli("record", "--input-ids", "1,2,3", GRANTS[grant], "--output", recording).code == 0
    ended = probekit_cli(
        "run", "--activations", recording, "--plugin", "activation-statistics", "--output", tmp_path / "run"
    )
    assert ended.code == 0, ended.err
    model = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["configuration"]["model"]
    assert model.get(grant, False) is False


def test_python_arguments_are_the_callers_own_word(own_code: Path, tmp_path: Path) -> None:
    ids = [[1, 2, 3]]
    with pytest.raises(probekit.ModelError, match="--trust-remote-code"):
        probekit.run(str(own_code), "activation-statistics", input_ids=ids, output=tmp_path / "run")
    model = {"name": str(own_code), "trust_remote_code": True}
    assert probekit.run(model, "activation-statistics", input_ids=ids, output=tmp_path / "run").status == "done"
    assert probekit.load(own_code, trust_remote_code=True).facts["architecture"] == "OwnModel"


def test_what_an_analysis_loads_beside_the_model_is_read_as_carefully(pickled: Path) -> None:
    from probekit_plugins.text_vae.encoders import automodel

    with pytest.raises(probekit.UsageError, match="its weights are pickled, and pickle can run code") as caught:
        automodel(str(pickled))
    assert "--allow-pickle" not in str(caught.value)  # which is said of the run's own model


# --- the network -----------------------------------------------------------------------------------------------------

# Every way by which Python leaves the machine is noted and refused; the Rust client of the hub, which would not be
# seen, is not there as long as nothing asks for it.
WATCHED = """
import json, os, socket, sys

attempts = []

def noted(name):
    def refuse(*arguments, **keywords):
        attempts.append([name, repr(arguments)[:200]])
        if "at the first" in ending:
            print()
            print(json.dumps({"attempts": attempts}), flush=True)
            os._exit(0)
        raise OSError("there is no network in this test")
    return refuse

for name in ("connect", "connect_ex", "sendto", "sendmsg"):
    setattr(socket.socket, name, noted(name))
for name in ("getaddrinfo", "gethostbyname", "create_connection"):
    setattr(socket, name, noted(name))

from probekit.cli import main

codes, ending = [], sys.argv[2:]
for call in json.loads(sys.argv[1]):
    sys.argv = ["probekit", *call]
    try:
        main()
    except SystemExit as ended:
        codes.append(ended.code)
print()
print(json.dumps({"codes": codes, "attempts": attempts, "rust": "hf_xet" in sys.modules}))
"""
UNSET = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "")


def watched(probekit_process: Any, *calls: list[object], home: Path, ending: str = "after all") -> dict[str, Any]:
    words = json.dumps([[str(word) for word in call] for call in calls])
    ended = probekit_process(words, ending, code=WATCHED, environment={**UNSET, "HF_HOME": str(home)})
    assert ended.code == 0, ended.err
    found: dict[str, Any] = json.loads(ended.out.splitlines()[-1])
    return found


def test_a_folder_and_the_embedded_model_are_read_without_the_network_though_it_is_not_switched_off(
    tiny_gpt2: Callable[..., Path], probekit_process: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_gpt2(n_layer=2), folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"_name_or_path": "someone/else", "attn_implementation": "kernels-community/flash-attn2"}
    config["auto_map"] = {"AutoConfig": "someone/else--evil.Config"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    run, small = tmp_path / "run", ["-o", "gradient-inverter.steps=2", "-o", "gradient-inverter.restarts=1"]
    several = ["--plugin", "gradient-inverter", "--plugin", "activation-statistics", "--plugin", "layer-similarity"]
    alone = ["--plugin", "activation-statistics"]
    calls: list[list[object]] = [
        ["run", "--model", folder, *several, *small, "--output", run],
        ["run", "--model", folder, "--weights", "random", *alone, "--output", tmp_path / "random"],
        ["run", *alone, "--output", tmp_path / "demo"],
        ["record", "--model", folder, "--prompt", "The sky", "--output", tmp_path / "recording"],
        ["models", "show", folder],
        ["report", run],
        ["runs", tmp_path],
        ["plugins", "list"],
    ]
    found = watched(probekit_process, *calls, home=tmp_path / "home")
    assert found == {"codes": [0] * len(calls), "attempts": [], "rust": False}


def test_a_name_on_the_hub_asks_for_the_network_which_the_watch_sees(probekit_process: Any, tmp_path: Path) -> None:
    call = ["models", "show", "someone/model"]
    assert watched(probekit_process, call, home=tmp_path / "home", ending="at the first")["attempts"]


def test_the_hub_is_switched_back_on_after_a_folder_was_read(
    tiny_gpt2: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    from probekit.models.trust import without_network

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with without_network(), without_network():
        assert constants.is_offline_mode()
    assert not constants.is_offline_mode()
    probekit.load(tiny_gpt2())
    with pytest.raises(probekit.ModelError):
        probekit.load(tiny_gpt2(), depth=1, dtype="float16", blocks="nowhere")
    assert not constants.is_offline_mode()


def test_transformers_does_not_ask_the_hub_to_convert_weights_meanwhile(
    tiny_gpt2: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION", raising=False)
    folder = str(tiny_gpt2())
    with probekit.reading_model(folder, probekit.ModelSpec(name=folder)):
        assert os.environ["DISABLE_SAFETENSORS_CONVERSION"] == "1"
    assert "DISABLE_SAFETENSORS_CONVERSION" not in os.environ


# --- the hub ---------------------------------------------------------------------------------------------------------


def cached(home: Path, folder: Path, *names: str) -> None:
    """A folder as the hub's cache keeps it: the repository `someone/model`."""
    repository = home / "hub" / "models--someone--model"
    commit = "1" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(folder, repository / "snapshots" / commit)
    for name in names:
        (repository / ".no_exist" / commit).mkdir(parents=True, exist_ok=True)
        (repository / ".no_exist" / commit / name).touch()


def test_a_repository_of_the_hub_with_pickled_weights_or_an_adapter_is_a_sentence(
    pickled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "one" / "hub"))
    cached(tmp_path / "one", pickled)
    with pytest.raises(probekit.ModelError, match="The weights of 'someone/model' are pickled"):
        probekit.load("someone/model")
    assert probekit.load("someone/model", allow_pickle=True).facts["revision"] == "1" * 40
    assert probekit.load("someone/model", weights="random").facts["source"] == "random weights"
    (pickled / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}', encoding="utf-8")
    cached(tmp_path / "two", pickled)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "two" / "hub"))
    for files in ("with a config", "with the adapter alone"):
        if files == "with the adapter alone":
            for config in tmp_path.glob("two/**/snapshots/*/config.json"):
                config.unlink()
        with pytest.raises(probekit.ModelError, match="PEFT adapter" if files == "with a config" else "someone/model"):
            probekit.load("someone/model", allow_pickle=True)
