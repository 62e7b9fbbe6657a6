"""`probekit verify`: what is whole, what was changed, and whether a report says what was measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import probekit
from probekit import AnalysisError, Plugins, Prompt, Result, UsageError
from probekit.runs.hashes import HASHES_FILE, drawn_again
from probekit.runs.recompute import compared
from probekit.runs.render import render
from probekit.runs.verify import Verified, verify

if TYPE_CHECKING:
    from tests.conftest import Ended

WRITTEN_BY_0_1 = Path(__file__).parent / "written_by" / "0.1.0"


class MeansOptions(probekit.Options):
    """No options but one that decides a figure."""

    times: float = 2.0


class Means(probekit.Analysis[MeansOptions]):
    """The mean of some numbers, which are its tensor."""

    name = "means"

    def run(self, subject: Any, prompts: Sequence[Prompt]) -> Result:
        import torch

        numbers = torch.arange(5, dtype=torch.float64) / 3
        result = Result(tensors={"numbers": numbers}, metrics={"steps": 7}, notes=["It is a test."])
        self._summarise(result, numbers.numpy())
        return result

    def _summarise(self, result: Result, numbers: Any) -> None:
        mean = float(numbers.mean()) * self.options.times
        result.metrics["mean"] = mean
        result.tables["numbers"] = [
            {"number": float(number), "name": str(index)} for index, number in enumerate(numbers)
        ]
        result.finding = f"The mean is {mean:.3f}."

    def recompute(self, result: Result) -> Result:
        again = Result()
        self._summarise(again, result.tensors["numbers"])
        return again

    def report(self, result: Result, page: probekit.Page) -> None:
        page.table(["number"], [[row["number"]] for row in result.tables["numbers"]], caption="Numbers")


class Mute(Means):
    """The same, computing nothing again."""

    name = "mute"

    def recompute(self, result: Result) -> Result | None:
        return None


class Failing(Means):
    """The same, whose figures cannot be computed again."""

    name = "failing"

    def recompute(self, result: Result) -> Result:
        raise KeyError("numbers")


class Broken(Means):
    """Raises."""

    name = "broken"

    def run(self, subject: Any, prompts: Sequence[Prompt]) -> Result:
        raise AnalysisError("The moon is in the way.")


def plugins() -> Plugins:
    class Provider:
        @staticmethod
        @probekit.hookimpl
        def probekit_analyses() -> list[type[probekit.Analysis[Any]]]:
            return [Means, Mute, Failing, Broken]

    manager = Plugins(points=[])
    manager.register(Provider())
    return manager


@pytest.fixture(scope="module")
def made(tiny_gpt2: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A run of some of these analyses, made once."""
    runs: dict[tuple[str, ...], Path] = {}

    def make(*names: str) -> Path:
        if names not in runs:
            place = tmp_path_factory.mktemp("runs") / "run"
            probekit.run(str(tiny_gpt2()), names, ["The sky"], output=place, manager=plugins())
            runs[names] = place
        return runs[names]

    return make


@pytest.fixture
def run(made: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of a run of `means`, to be spoilt."""
    return shutil.copytree(made("means"), tmp_path / "run")


def again(path: Path) -> Verified:
    return verify(path, recompute=True, manager=plugins())


def rewrite(path: Path, change: Callable[[Any], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document, indent=1) + "\n")


def forge(run: Path) -> None:
    """Write hashes that fit to what is there now, as somebody would who wants to deceive."""
    from probekit.runs.directory import RunDirectory
    from probekit.runs.hashes import keep_hashes

    keep_hashes(RunDirectory(run), json.loads((run / "run.json").read_text()))


def test_a_run_that_nobody_touched_is_whole(run: Path) -> None:
    found = again(run)
    assert found.whole
    assert (found.problems, found.notes) == ([], ["means: not computed again: the metric 'steps'."])
    assert found.recomputed["means"].equal == 1 + 2 * 5 + 1
    assert found.files == sum(path.is_file() for path in run.rglob("*")) - 3  # hashes, times, events


def test_equal_runs_have_one_digest_wherever_they_are_and_others_another(
    made: Callable[..., Path], run: Path, tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    def digest(place: str, **given: Any) -> str:
        options = {"plugins": "means", "prompts": ["The sky"], "manager": plugins()} | given
        return verify(probekit.run(str(tiny_gpt2()), output=tmp_path / place, **options).path).digest

    assert digest("elsewhere") == verify(run).digest
    assert digest("other", options={"times": 3.0}) != verify(run).digest


FILES = ["run.json", "config.toml", "report.html", "summary.md"]
FILES += [
    f"analyses/means/{name}" for name in ("result.json", "tensors.safetensors", "options.json", "page.json", "DONE")
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["a byte more", "gone", "a link"])
def test_a_file_that_was_touched_is_named(name: str, how: str, run: Path, tmp_path: Path) -> None:
    file = run / name
    if how == "a byte more":
        file.write_bytes(file.read_bytes() + b" ")
    else:
        file.rename(tmp_path / "aside")
        if how == "a link":
            file.symlink_to(tmp_path / "aside")
    if (name, how) == ("run.json", "gone"):
        with pytest.raises(UsageError, match="no run, no recording and no study"):
            verify(run)
        return
    found = verify(run)
    assert not found.whole
    assert any(Path(name).name in problem for problem in found.problems), found.problems


def test_hashes_that_are_gone_or_damaged_are_a_problem(run: Path) -> None:
    (run / HASHES_FILE).write_text('{"schema": 1, "files": {"run.json": 5}}')
    assert "is damaged" in verify(run).problems[0]
    (run / HASHES_FILE).unlink()
    assert "has no hashes.json" in verify(run).problems[0]


def test_what_others_put_beside_is_said_and_no_problem(run: Path) -> None:
    (run / "notes.txt").write_text("mine")
    found = verify(run)
    assert found.whole
    assert found.notes == ["Not of the run, and not looked at: notes.txt."]


def test_a_run_that_is_not_over_is_not_whole(run: Path) -> None:
    rewrite(run / "run.json", lambda manifest: manifest.update(status="interrupted"))
    assert "interrupted, not over; go on with it" in verify(run).problems[0]


# --- forged with hashes that fit: only the figures tell ---------------------------------------------------------------


def result_of(run: Path) -> Path:
    return run / "analyses" / "means" / "result.json"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda result: result["metrics"].update(mean=9.5), "the metric 'mean' is 9.5, recomputed 1.333"),
        (lambda result: result["tables"]["numbers"][2].update(number=5.0), "row 2, column 'number' is 5.0"),
        (lambda result: result["tables"]["numbers"].pop(), "the table 'numbers' has 4 rows, recomputed 5"),
        (lambda result: result["tables"].pop("numbers"), "the table 'numbers' is missing"),
        (lambda result: result.update(finding="The mean is 9.500."), "the finding is 'The mean is 9.500.'"),
    ],
    ids=["metric", "cell", "row", "table", "finding"],
)
def test_a_forged_figure_is_found_by_computing_it_again(change: Any, said: str, run: Path) -> None:
    rewrite(result_of(run), change)
    forge(run)
    assert verify(run).whole, "the hashes were forged as well"
    assert any(said in problem for problem in again(run).problems), again(run).problems


def test_a_forged_tensor_is_found_too(run: Path) -> None:
    from safetensors.numpy import load_file, save_file

    file = run / "analyses" / "means" / "tensors.safetensors"
    save_file({"numbers": load_file(file)["numbers"] * 1.001}, file)
    forge(run)
    assert any("the metric 'mean'" in problem for problem in again(run).problems)


def test_a_page_that_shows_something_else_than_the_result_is_found(run: Path) -> None:
    page = run / "analyses" / "means" / "page.json"
    page.write_text(page.read_text().replace("The mean is 1.333.", "The mean is 9.333."))
    from probekit.runs.directory import RunDirectory

    render(RunDirectory(run))
    forge(run)
    assert verify(run).whole
    assert again(run).problems == ["The page of 'means' is not what the analysis draws of its saved result."]


def test_a_report_that_shows_something_else_than_its_pages_is_found(run: Path) -> None:
    report = run / "report.html"
    report.write_text(report.read_text().replace("The mean is 1.333.", "The mean is 9.333."))
    forge(run)
    assert verify(run).problems == ["The file 'report.html' is not what the run's pages draw."]


def test_a_configuration_that_is_not_the_runs_is_found(run: Path) -> None:
    config = run / "config.toml"
    config.write_text(config.read_text().replace("The sky", "The sea"))
    forge(run)
    assert verify(run).problems == ["The file 'config.toml' has another 'prompts' than run.json."]


def test_a_result_that_is_not_finite_is_found(run: Path) -> None:
    import numpy
    from safetensors.numpy import save_file

    save_file({"numbers": numpy.array([1.0, numpy.nan])}, run / "analyses" / "means" / "tensors.safetensors")
    forge(run)
    assert "holds NaN or infinity" in verify(run).problems[0]


def test_names_that_lead_elsewhere_are_refused(run: Path) -> None:
    def climb(manifest: dict[str, Any]) -> None:
        manifest["analyses"]["../../secret"] = {"status": "done"}

    rewrite(run / "run.json", climb)
    assert "is damaged: at 'analyses.../../secret" in verify(run).problems[0]
    with pytest.raises(UsageError, match="is damaged: at 'analyses"):
        probekit.read_run(run)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda manifest: manifest["configuration"]["options"]["means"].update(times=3.0), "The options of 'means'"),
        (lambda manifest: manifest.update(analyses={}), "tells of other analyses than were asked for: means"),
        (lambda manifest: manifest["analyses"].update(means={"status": "failed", "error": "no"}), "says 'done'"),
        (lambda manifest: manifest["analyses"].update(means={"status": "waiting"}), "says 'done'"),
        (lambda manifest: manifest.update(status="failed"), "says 'failed'"),
    ],
    ids=["options", "no analyses", "failed", "waiting", "status"],
)
def test_a_manifest_that_tells_another_story_is_found(change: Any, said: str, run: Path) -> None:
    from probekit.runs.directory import RunDirectory

    rewrite(run / "run.json", change)
    render(RunDirectory(run))
    forge(run)
    assert any(said in problem for problem in verify(run).problems), verify(run).problems


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["model"].update(parameters=5),
        lambda manifest: manifest["versions"].update(torch="1.0"),
        lambda manifest: manifest["configuration"].update(seed=5),
    ],
    ids=["model", "versions", "seed"],
)
def test_what_a_run_was_done_with_is_in_its_digest(change: Any, run: Path) -> None:
    before = verify(run).digest
    rewrite(run / "run.json", change)
    forge(run)
    assert verify(run).digest != before


def test_a_note_that_was_put_at_the_end_is_found(run: Path) -> None:
    page = run / "analyses" / "means" / "page.json"

    def forged(text: str) -> list[str]:
        rewrite(page, lambda document: document["blocks"].append({"type": "note", "text": text}))
        from probekit.runs.directory import RunDirectory

        render(RunDirectory(run))
        forge(run)
        found = again(run).problems
        rewrite(page, lambda document: document["blocks"].pop())
        return found

    assert forged("While it computed, the analysis printed 2 lines, kept in the run's events.jsonl.") == []
    assert forged("While it computed, the analysis printed nothing. It recovers 100% of the prompt.") != []


# --- what cannot be computed again -----------------------------------------------------------------------------------


def test_what_an_analysis_does_not_compute_again_is_said(made: Callable[..., Path]) -> None:
    found = again(made("mute"))
    assert found.whole
    assert found.notes == [
        "mute: not computed again: the metric 'steps'; the metric 'mean'; the table 'numbers'; the finding."
    ]


def test_an_analysis_that_raises_while_it_computes_again_is_a_problem(made: Callable[..., Path]) -> None:
    assert again(made("failing")).problems == ["The figures of 'failing' cannot be computed again: KeyError: 'numbers'"]


def test_a_plugin_that_is_not_installed_is_a_problem_of_computing_again_only(run: Path) -> None:
    assert verify(run).whole
    assert "Nothing can be computed again: " in verify(run, recompute=True).problems[0]


def test_a_run_with_a_failed_analysis_is_whole_all_the_same(made: Callable[..., Path]) -> None:
    assert again(made("means", "broken")).whole


def test_a_report_drawn_again_is_still_whole(run: Path) -> None:
    from probekit.runs.directory import RunDirectory

    render(RunDirectory(run))
    drawn_again(RunDirectory(run))
    assert verify(run).whole


# --- figures, compared -----------------------------------------------------------------------------------------------


def test_rounding_is_no_difference_and_types_are_one() -> None:
    saved = Result(metrics={"a": 1.0, "b": 3, "c": True, "d": None, "e": "x"})
    near = Result(metrics={"a": 1.000001, "b": 3, "c": True, "d": None, "e": "x"})
    assert compared(saved, near).different == []
    other = Result(metrics={"a": 1.0001, "b": 4, "c": 1, "d": 0.0, "e": "y"})
    assert len(compared(saved, other).different) == 5


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_says_what_is_whole_and_ends_with_1_if_something_is_not(
    run: Path, probekit_cli: Callable[..., Ended]
) -> None:
    ended = probekit_cli("verify", str(run))
    assert (ended.code, ended.out.split(" digest ")[0]) == (0, "whole: 9 files,")
    document = json.loads(probekit_cli("verify", str(run), "--json").out)
    assert (document["whole"], document["kind"], document["files"]) == (True, "run", 9)
    result_of(run).write_text("{}")
    ended = probekit_cli("verify", str(run))
    assert ended.code == 1
    assert "problem: The file 'analyses/means/result.json' is not what was written" in ended.out
    assert ended.err.startswith(f"Error: '{run}' is not whole: ")
    assert probekit_cli("verify", str(run.parent)).code == 2


def test_recordings_and_studies_are_verified_too(tmp_path: Path) -> None:
    recording = shutil.copytree(WRITTEN_BY_0_1 / "a-recording", tmp_path / "recording")
    assert verify(recording).whole
    shard = next(recording.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert "its hash is not the index's" in verify(recording).problems[0]

    study = shutil.copytree(WRITTEN_BY_0_1 / "study", tmp_path / "study")
    found = verify(study)
    assert found.whole
    assert len(found.parts) == 2
    next(study.glob("cells/*/analyses/*/page.json")).write_text("[]")
    assert not verify(study).whole


def test_a_study_of_which_a_cell_is_gone_is_not_whole(tmp_path: Path) -> None:
    study = shutil.copytree(WRITTEN_BY_0_1 / "study", tmp_path / "study")
    keys = sorted(path.name for path in (study / "cells").iterdir())
    rewrite(study / "study.json", lambda document: document.update(cells=keys))
    (study / "cells" / f".{keys[0]}.abc").mkdir()
    assert verify(study).whole
    shutil.rmtree(study / "cells" / keys[1])
    assert verify(study).problems == [f"Of its cells these are missing: {keys[1]}."]
