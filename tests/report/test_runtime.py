import sys
import types
from pathlib import Path

import pytest

from probekit.report import runtime


@pytest.fixture
def bundler(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stand-in for vl-convert that counts how often it bundles."""
    calls: list[str] = []

    def javascript_bundle(snippet: str) -> str:
        calls.append(snippet)
        return f"const vegaEmbed = 1;\r\n{snippet}"

    module = types.SimpleNamespace(__version__="9.9", javascript_bundle=javascript_bundle)
    monkeypatch.setitem(sys.modules, "vl_convert", module)
    return calls


def test_the_bundle_is_made_once_and_kept_by_version(
    bundler: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROBEKIT_CACHE", str(tmp_path / "own"))
    first, second = runtime.vega_runtime(), runtime.vega_runtime()
    assert first == second
    assert len(bundler) == 1
    (kept,) = (tmp_path / "own").iterdir()
    assert kept.name.startswith("vega-9.9-")


@pytest.mark.parametrize("damage", [b"", b"// 00\nalert(1)", b"\xff\xfe"])
def test_a_damaged_file_in_the_cache_is_made_again(
    bundler: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    monkeypatch.setenv("PROBEKIT_CACHE", str(tmp_path))
    first = runtime.vega_runtime()
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(damage)
    assert runtime.vega_runtime() == first
    assert runtime.vega_runtime() == first
    assert len(bundler) == 2


def test_a_cache_that_cannot_be_written_is_done_without(
    bundler: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    monkeypatch.setenv("PROBEKIT_CACHE", str(blocked))
    assert runtime.vega_runtime() == runtime.vega_runtime()
    assert len(bundler) == 2


def test_the_cache_follows_the_xdg_convention(
    bundler: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PROBEKIT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runtime.vega_runtime()
    assert len(list((tmp_path / "probekit").iterdir())) == 1


def test_without_a_home_there_is_no_cache_and_no_error(bundler: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("PROBEKIT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert runtime.vega_runtime()


def test_a_bundle_that_would_end_its_script_is_refused(
    bundler: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROBEKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(sys.modules["vl_convert"], "javascript_bundle", lambda _: "'</SCRIPT>'")
    with pytest.raises(RuntimeError, match="end its script element early"):
        runtime.vega_runtime()
    assert list(tmp_path.iterdir()) == []
