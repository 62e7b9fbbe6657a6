"""Bad input: one sentence on standard error, the exit code that says whose fault it is, and nothing left behind."""

from __future__ import annotations

import json
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SMALL = ["-o", "steps=2", "-o", "restarts=1"]


@pytest.fixture
def model(tiny_gpt2: Callable[..., Path]) -> Path:
    """A model that tests do not change."""
    return tiny_gpt2()


@pytest.fixture
def copy(tiny_gpt2: Callable[..., Path], tmp_path: Path) -> Path:
    """A model folder of the test's own."""
    return Path(shutil.copytree(tiny_gpt2(), tmp_path / "model"))


@pytest.fixture
def refused(probekit_cli: Any, tmp_path: Path) -> Callable[..., str]:
    """`refused(code, *options)` runs into a new folder, and gives the one sentence that it ended with."""

    def check(code: int, *options: object) -> str:
        output = tmp_path / "parent" / "output"
        ended = probekit_cli("run", *options, "--output", output, "--json")
        assert ended.code == code, ended.err
        assert ended.out == ""
        assert not output.parent.exists(), "a half-made output directory, or its parent, is left"
        sentence: str = ended.sentence
        return sentence

    return check


def edit_weights(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


# --- the model -------------------------------------------------------------------------------------------------------


def test_an_unknown_model_offline_says_that_the_hub_is_switched_off(refused: Any) -> None:
    sentence = refused(4, "--model", "nobody/no-such-model-anywhere")
    assert "'nobody/no-such-model-anywhere'" in sentence
    assert "hub is switched off (HF_HUB_OFFLINE)" in sentence


def test_an_unknown_name_and_a_dead_network_are_told_apart(refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
    from transformers import PreTrainedConfig

    response: Any = types.SimpleNamespace(headers={}, request=None, status_code=404)
    sentences = {}
    for kind, error, cause in (
        ("name", RepositoryNotFoundError("404\nClient Error", response=response), None),
        ("gated", GatedRepoError("403", response=response), None),
        ("network", LocalEntryNotFoundError("not cached"), ConnectionError("no route")),
        ("down", OSError("We couldn't connect to the hub"), None),
    ):

        def fail(*_: Any, error: Exception = error, cause: Any = cause, **__: Any) -> Any:
            raise OSError("nobody/name is not a local folder and is not a valid model identifier") from (
                error if cause is None else error.with_traceback(None)
            )

        monkeypatch.setattr(PreTrainedConfig, "get_config_dict", fail)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
        sentences[kind] = refused(4, "--model", "nobody/name")
    assert "hub has no repository of that name" in sentences["name"]
    assert "gated" in sentences["gated"]
    for kind in ("network", "down"):
        assert "the hub cannot be reached: check the network" in sentences[kind]


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "a/b/c"])
def test_a_path_to_nothing_is_not_looked_up_on_the_hub(refused: Any, name: str) -> None:
    assert f"There is no folder '{name}'" in refused(4, "--model", name)


@pytest.mark.parametrize("name", ["", "no such name", "über", "-x", "a" * 200, "a--b"])
def test_a_name_that_no_model_could_have_is_one_sentence(probekit_cli: Any, name: str, tmp_path: Path) -> None:
    ended = probekit_cli("run", "--model", name, "--output", tmp_path / "output")
    assert ended.code == (2 if name == "" else 4)
    assert ended.sentence
    assert not (tmp_path / "output").exists()


def test_a_folder_without_a_config(refused: Any, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    assert "has no config.json" in refused(4, "--model", folder)


def test_a_file_in_place_of_a_folder(refused: Any, copy: Path) -> None:
    assert "is a file; expected a model folder" in refused(4, "--model", copy / "model.safetensors")


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "{}", '{"model_type": "no-such-architecture"}', "\0"])
def test_a_config_that_is_none(refused: Any, copy: Path, text: str) -> None:
    (copy / "config.json").write_text(text)
    assert str(copy) in refused(4, "--model", copy)


def test_a_config_of_a_model_that_is_no_causal_language_model(refused: Any, copy: Path) -> None:
    (copy / "config.json").write_text('{"model_type": "clip"}')
    assert "is not a causal language model" in refused(4, "--model", copy)


def test_a_config_without_weights(refused: Any, copy: Path, probekit_cli: Any, tmp_path: Path) -> None:
    (copy / "model.safetensors").unlink()
    sentence = refused(4, "--model", copy)
    assert "has a config but no weights that can be loaded" in sentence
    assert "--weights random" in sentence
    untrained = ["run", "--model", copy, "--weights", "random", *SMALL, "--output", tmp_path / "untrained"]
    assert probekit_cli(*untrained).code == 0


def test_weights_that_lack_one(refused: Any, copy: Path) -> None:
    edit_weights(copy, lambda weights: weights.pop("transformer.h.1.mlp.c_fc.weight"))
    sentence = refused(4, "--model", copy)
    assert "do not fit its config" in sentence
    assert "transformer.h.1.mlp.c_fc.weight" in sentence


@pytest.mark.parametrize(
    "changes",
    [{"n_embd": 64}, {"vocab_size": 77}, {"n_positions": 16}, {"n_inner": 64}],
    ids=lambda changes: next(iter(changes)),
)
def test_weights_of_another_shape(refused: Any, copy: Path, changes: dict[str, int]) -> None:
    edit_config(copy, **changes)
    assert "do not fit its config" in refused(4, "--model", copy)


def test_a_config_that_makes_more_blocks_than_there_are_weights_for(refused: Any, copy: Path) -> None:
    edit_config(copy, n_layer=5)
    assert "missing from the checkpoint (first: transformer.h.3." in refused(4, "--model", copy)


def test_weights_of_more_blocks_than_the_config_makes(
    refused: Any, copy: Path, probekit_cli: Any, tmp_path: Path
) -> None:
    edit_config(copy, n_layer=2)
    sentence = refused(4, "--model", copy)
    assert "transformer.h.2." in sentence
    assert "only 2 blocks" in sentence
    assert "--depth" in sentence


@pytest.mark.parametrize("kept", [0, 5, 1000, -1])
def test_truncated_weights(refused: Any, copy: Path, kept: int) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    assert "damaged or incomplete" in refused(4, "--model", copy)


def test_code_that_comes_with_a_model_is_not_run_unless_allowed(refused: Any, copy: Path, tmp_path: Path) -> None:
    trace = tmp_path / "was here"
    (copy / "own_code.py").write_text(f"open({str(trace)!r}, 'w').close()\nraise RuntimeError('own code ran')\n")
    edit_config(
        copy, model_type="own", auto_map={"AutoConfig": "own_code.Own", "AutoModelForCausalLM": "own_code.OwnModel"}
    )
    sentence = refused(4, "--model", copy)
    assert "its own model code" in sentence
    assert "--trust-remote-code" in sentence
    assert not trace.exists()


@pytest.mark.parametrize(
    "where", ["transformer.wte.weight", "transformer.h.0.ln_1.weight", "transformer.h.0.mlp.c_fc.bias"]
)
def test_a_weight_that_is_not_a_number_is_named(copy: Path, probekit_cli: Any, tmp_path: Path, where: str) -> None:
    edit_weights(copy, lambda weights: weights[where].view(-1)[1:2].fill_(float("nan")))
    output = tmp_path / "output"
    ended = probekit_cli("run", "--model", copy, *SMALL, "--prompt", "abc", "--output", output)
    assert ended.code == 1, ended.err
    assert where in ended.sentence
    assert "NaN" in ended.sentence
    assert json.loads((output / "run.json").read_text(encoding="utf-8"))["status"] == "failed"


def test_a_later_block_that_is_not_a_number_is_found_where_it_is_read(
    copy: Path, probekit_cli: Any, tmp_path: Path
) -> None:
    where = "transformer.h.2.ln_2.bias"
    edit_weights(copy, lambda weights: weights[where].fill_(float("inf")))
    run = ["run", "--model", copy, *SMALL, "-o"]
    ended = probekit_cli(*run, "sites=blocks", "--output", tmp_path / "all")
    assert ended.code == 1
    assert where in ended.sentence
    # A map that stops before the bad weight computes with sound ones only.
    assert probekit_cli(*run, "sites=block.1", "--output", tmp_path / "before").code == 0
    ended = probekit_cli("run", "--model", copy, "--plugin", "pseudo-inverse", "--output", tmp_path / "lens")
    assert ended.code == 1
    assert where in ended.sentence


@pytest.mark.parametrize("extra", [[], ["--device-map", "cuda:0"], ["--device", "cuda:99"]], ids=" ".join)
def test_a_device_that_is_not_there(refused: Any, model: Path, extra: list[str]) -> None:
    import torch

    if torch.cuda.is_available() and "cuda:99" not in extra:
        pytest.skip("This machine has CUDA.")
    assert "cuda" in refused(2, "--model", model, *(extra or ["--device", "cuda"])).lower()


@pytest.mark.parametrize(
    "options",
    [
        ["--device", "cpu", "--device-map", "auto"],
        ["--max-memory", "cpu=plenty"],
        ["--device", "toaster"],
        ["--depth", "99"],
    ],
    ids=" ".join,
)
def test_options_that_contradict_each_other_or_the_model(refused: Any, model: Path, options: list[str]) -> None:
    refused(2, "--model", model, *options)


# --- the request -----------------------------------------------------------------------------------------------------


def test_an_unknown_plugin_names_the_nearest(refused: Any) -> None:
    sentence = refused(2, "--plugin", "gradient-invertr")
    assert "There is no plugin 'gradient-invertr'" in sentence
    assert "Did you mean 'gradient-inverter'?" in sentence


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["-o", "stps=5"], ["no option 'stps'", "Did you mean 'steps'?"]),
        (["-o", "steps=many"], ["'steps'", "'many'", "integer"]),
        (["-o", "steps=0"], ["'steps'", "greater than or equal to 1"]),
        (["-o", "steps=1.5"], ["'steps'", "1.5"]),
        (["-o", "steps=[1]"], ["'steps'", "[1]"]),
        (["-o", "steps="], ["'steps'", "''"]),
        (["-o", "learning_rate=nan"], ["'learning_rate'", "nan", "finite"]),
        (["-o", "learning_rate=-inf"], ["'learning_rate'", "-inf"]),
        (["-o", "loss=l3"], ["'loss'", "'l3'", "expected 'l1', 'l2'"]),
        (["-o", "steps"], ["'-o steps' is no option", "KEY=VALUE"]),
        (["-o", "=5"], ["KEY=VALUE"]),
        (["-o", "pseudo-inverse.top_k=2"], ["no analysis of this run (gradient-inverter)"]),
        (["-o", "gradient-invertr.steps=2"], ["Did you mean 'gradient-inverter'?"]),
        (["--plugin", "gradient-inverter", "--plugin", "pseudo-inverse", "-o", "top_k=2"],
         ["several analyses", "gradient-inverter.top_k or pseudo-inverse.top_k"]),
        (["--plugin", "pseudo-inverse", "-o", "decoders=['nearest', 'guess']"], ["decoders.1", "'guess'"]),
        (["--seed", "-1"], ["'seed'", "-1"]),
        (["--depth", "0"], ["'model.depth'", "0"]),
        (["--input-ids", "1,x"], ["'--input-ids 1,x'", "464,6766"]),
        (["--prompt", ""], ["prompt is empty"]),
        (["--input-ids", ""], ["no tokens"]),
        (["--config", "nowhere.toml"], ["'nowhere.toml' cannot be read"]),
        (["--prompts", "nowhere.txt"], ["'nowhere.txt' cannot be read"]),
        (["--prompts", "."], ["'.' cannot be read"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0].startswith("-") else "",
)  # fmt: skip
def test_a_wrong_request_is_named_with_what_was_expected(refused: Any, options: list[str], parts: list[str]) -> None:
    sentence = refused(2, *options)
    for part in parts:
        assert part in sentence


@pytest.mark.parametrize(
    "options",
    [["--nonsense"], ["--seed", "x"], ["--dtype", "int4"], ["--quantization", "int3"], ["--weights", "good"],
     ["--max-memory", "10GiB"], ["--device-map", "{"], ["extra"]],
    ids=" ".join,
)  # fmt: skip
def test_what_the_command_line_itself_refuses(refused: Any, options: list[str]) -> None:
    assert options[0] in refused(2, *options)


def test_a_wrong_choice_lists_the_choices(refused: Any) -> None:
    assert "'bfloat16'" in refused(2, "--dtype", "int4")


HOSTILE_CONFIGS = {
    "no TOML": "model = ",
    "unknown key": "modle = 5",
    "unknown key of the model": "[model]\ndtyp = 'float32'",
    "a number for the model": "model = 5",
    "a list for the model": "model = ['demo']",
    "a number for the plugins": "plugins = 5",
    "numbers in the plugins": "plugins = [5]",
    "lists in the plugins": "plugins = [['gradient-inverter']]",
    "no plugins": "plugins = []",
    "a word for the plugins": "plugins = 'gradient-inverter'",
    "a word for the prompts": "prompts = 'The sky'",
    "a number in the prompts": "prompts = [1]",
    "an empty prompt": "prompts = ['a', '']",
    "ids that are words": "input_ids = [['a']]",
    "flat ids": "input_ids = [1, 2]",
    "a number for the options": "options = 5",
    "an option of no analysis": "[options.nothing]\nsteps = 5",
    "a table in place of a value": "[options.gradient-inverter.steps]\nx = 1",
    "a number for blocked plugins": "block_plugins = 5",
    "lists of blocked plugins": "block_plugins = [[1]]",
    "a date for the seed": "seed = 2024-01-01",
    "not a number": "seed = nan",
    "a bad dtype": "[model]\ndtype = 'int4'",
    "a model without a name": "[model]\nname = ''",
}


@pytest.mark.parametrize("kind", HOSTILE_CONFIGS)
def test_a_configuration_that_is_none(refused: Any, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(HOSTILE_CONFIGS[kind])
    for more in ([], ["--dtype", "float64", "-o", "restarts=1", "--block-plugin", "x"]):
        refused(2, "--config", file, *more)


def test_a_configuration_that_is_not_text(refused: Any, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(b"seed = \xff")
    assert "is not TOML" in refused(2, "--config", file)


@pytest.mark.parametrize(
    ("site", "parts"),
    [
        ("block.3", ["3 blocks, block.0 to block.2"]),
        ("block.-4", ["3 blocks"]),
        ("blok.1", ["block.0 to block.2", "embedding", "norm", "logits", "Did you mean 'block.1'?"]),
        ("nonsense", ["There is no site 'nonsense'; the sites are block.0 to block.2"]),
        ("transformer.h.7.mlp", ["There is no site 'transformer.h.7.mlp'", "transformer.h."]),
        ("block.0,", ["There is no site ''"]),
        ("''", ["There is no site ''"]),
        ("block.0,,block.1", ["There is no site ''"]),
        ("block.5:9", ["'block.5:9' is no block of a model with 3 blocks"]),
        ("block.0:3:0", ["step"]),
        ("block.a", ["There is no site 'block.a'"]),
        ("block.1.5", ["There is no site 'block.1.5'"]),
        ("block.٣", ["block"]),
        ("transformer.h", ["transformer.h"]),
        ("[]", ["There is no site ''"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("plugin", ["gradient-inverter", "pseudo-inverse"])
def test_a_site_that_is_none_lists_the_sites_there_are(
    model: Path, probekit_cli: Any, tmp_path: Path, site: str, parts: list[str], plugin: str
) -> None:
    option = [] if plugin == "pseudo-inverse" else SMALL
    ended = probekit_cli(
        "run", "--model", model, "--plugin", plugin, *option, "-o", f"sites={site}", "--output", tmp_path / "x"
    )
    assert ended.code == 2, ended.err
    assert not (tmp_path / "x").exists()
    for part in parts:
        assert part in ended.sentence


def test_a_prompt_longer_than_the_context(refused: Any, model: Path) -> None:
    sentence = refused(2, "--model", model, "--prompt", "q" * 33)
    assert "has 33 tokens, but the model's context is 32" in sentence
    assert "longer" not in refused(2, "--model", model, "--input-ids", ",".join(["1"] * 400))


@pytest.mark.parametrize("ids", ["1,300000", "-1", "5,-7", "99999999999999999999999"])
def test_a_token_id_outside_the_vocabulary(refused: Any, model: Path, ids: str) -> None:
    sentence = refused(2, "--model", model, "--input-ids", ids)
    assert f"The token id {ids.split(',')[-1]} is outside the vocabulary" in sentence
    assert "ids go from 0 to" in sentence


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("p.txt", b"", "has no prompts"),
        ("p.txt", b" \n\t\n\r\n", "has no prompts"),
        ("p.txt", b"caf\xe9", "is not UTF-8 text"),
        ("p.jsonl", b"", "has no prompts"),
        ("p.jsonl", b'"a"\n{"prompt": ', "Line 2 of"),
        ("p.jsonl", b'"a"\n\n5', "Line 3 of"),
        ("p.jsonl", b'{"other": 1}', "is no prompt"),
        ("p.jsonl", b'{"prompt": 5}', "is no prompt"),
        ("p.jsonl", b'{"input_ids": []}', "is no prompt"),
        ("p.jsonl", b'{"input_ids": [1.5]}', "is no prompt"),
        ("p.jsonl", b"[true]", "is no prompt"),
        ("p.jsonl", b'{"input_ids": [-1]}', "outside the vocabulary"),
        ("p.jsonl", b'""', "prompt is empty"),
        ("p.jsonl", b'"\\ud800"', "surrogate"),
        ("p.jsonl", b"[" * 100_000, "is not JSON"),
    ],
)
def test_a_prompts_file_that_holds_none(
    refused: Any, model: Path, tmp_path: Path, name: str, content: bytes, part: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert part in refused(2, "--model", model, "--prompts", tmp_path / name)


def test_an_argument_that_is_not_text_is_one_sentence(probekit_process: Any, tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    ended = subprocess.run(
        [sys.executable, "-m", "probekit", "run", "--prompt", b"caf\xe9", "--output", str(tmp_path / "x")],
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "PYTHONUTF8": "1"},
        cwd=tmp_path,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(b"Error: The prompt ")
    assert ended.stderr.count(b"\n") == 1


def test_a_text_prompt_for_a_model_without_a_tokenizer_asks_for_ids(
    refused: Any, tiny_gpt2: Callable[..., Path], probekit_cli: Any, tmp_path: Path
) -> None:
    folder = tiny_gpt2(tokenizer=False)
    assert "--input-ids" in refused(2, "--model", folder)
    by_ids = ["run", "--model", folder, "--input-ids", "1,2", *SMALL, "--output", tmp_path / "ids"]
    assert probekit_cli(*by_ids).code == 0


@pytest.mark.data
def test_an_empty_prompt_is_empty_even_where_the_tokenizer_would_add_a_token(
    probekit_cli: Any, data_folder: Path, tmp_path: Path
) -> None:
    ended = probekit_cli(
        "run", "--model", data_folder / "models/stories260k", "--prompt", "", "--output", tmp_path / "x"
    )
    assert (ended.code, "prompt is empty" in ended.sentence) == (2, True)


# --- the output ------------------------------------------------------------------------------------------------------


def test_an_output_directory_that_holds_something_is_left_alone(probekit_cli: Any, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    ended = probekit_cli("run", "--model", model, *SMALL, "--output", output)
    assert ended.code == 2
    assert "exists and is not empty" in ended.sentence
    assert [path.name for path in output.iterdir()] == ["mine.txt"]


def test_an_empty_output_directory_is_used_and_stays_after_a_failure(
    probekit_cli: Any, model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    output.mkdir()
    identity = output.stat().st_ino
    assert probekit_cli("run", "--model", model, "--input-ids", "99999", "--output", output).code == 2
    assert list(output.iterdir()) == []
    assert probekit_cli("run", "--model", model, *SMALL, "--output", output).code == 0
    assert (output / "report.html").is_file()
    assert output.stat().st_ino == identity


def test_a_link_to_an_empty_directory_is_used_and_stays_after_a_failure(
    probekit_cli: Any, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    output = tmp_path / "output"
    output.symlink_to(tmp_path / "elsewhere")
    assert probekit_cli("run", "--model", model, "--input-ids", "99999", "--output", output).code == 2
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert output.is_symlink()
    assert probekit_cli("run", "--model", model, *SMALL, "--output", output).code == 0
    assert (tmp_path / "elsewhere" / "run.json").is_file()


def test_an_output_that_is_a_file_is_left_alone(probekit_cli: Any, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.write_text("mine")
    for place in (output, output / "below"):
        ended = probekit_cli("run", "--model", model, *SMALL, "--output", place)
        assert ended.code == 2
        assert str(place) in ended.sentence
    assert output.read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="This machine has no /proc, where nobody can write.")
def test_an_output_directory_that_cannot_be_written(probekit_cli: Any, model: Path) -> None:
    ended = probekit_cli("run", "--model", model, *SMALL, "--output", "/proc/probekit/run")
    assert ended.code == 2
    assert "'/proc/probekit/run' cannot be written" in ended.sentence


def test_an_output_name_that_is_too_long(probekit_cli: Any, model: Path, tmp_path: Path) -> None:
    ended = probekit_cli("run", "--model", model, *SMALL, "--output", tmp_path / ("x" * 300))
    assert ended.code == 2
    assert "name too long" in ended.sentence.lower()


def test_a_failure_keeps_other_runs_in_the_default_folder(
    probekit_cli: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert probekit_cli("run", "--model", "./nowhere").code == 4
    assert list(tmp_path.glob("probekit-runs*")) == []
    assert probekit_cli("run", "--model", model, *SMALL).code == 0
    assert probekit_cli("run", "--model", "./nowhere").code == 4
    assert len(list((tmp_path / "probekit-runs").iterdir())) == 1


# --- other commands --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["models", "show", "./nowhere"], 4, "There is no folder './nowhere'"),
        (["models", "show", "demo", "--depth", "0"], 2, "depth"),
        (["models", "show", "demo", "--blocks", "transformer.nothing"], 4, "transformer.nothing"),
        (["plugins", "show", "gradient-invertr"], 2, "Did you mean 'gradient-inverter'?"),
        (["report", "nowhere"], 2, "'nowhere' is no run directory"),
        (["rnu"], 2, "No such command 'rnu'"),
    ],
)
def test_other_commands_refuse_in_one_sentence(probekit_cli: Any, arguments: list[str], code: int, part: str) -> None:
    ended = probekit_cli(*arguments)
    assert ended.code == code
    assert part in ended.sentence
    assert ended.out == ""
