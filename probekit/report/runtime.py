"""The one Vega runtime of a page: taken from vl-convert, kept on disk by its version.

Bundling takes vl-convert a few seconds, and the bundle only changes with vl-convert. It is kept in `$PROBEKIT_CACHE`,
else `$XDG_CACHE_HOME/probekit`, else `~/.cache/probekit`. A cached file names the hash of its own text, so that a
truncated or altered one is made again rather than put into a report.
"""

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

# vega-embed brings Vega's expression interpreter and uses it where a spec is embedded with `ast: true`.
_SNIPPET = "globalThis.probekitEmbed = vegaEmbed;"
# The bundle runs with a console of its own: Vega-Lite warns about specs that it draws well, vega-embed offers no way
# to tell it not to, and errors reach the page as rejected promises.
_OPENING = "((console) => {"
_CLOSING = "\n})(new Proxy({}, { get: () => () => {} }));"


def vega_runtime() -> str | None:
    """JavaScript that defines `probekitEmbed`, or None if vl-convert is not installed.

    Raises RuntimeError if vl-convert's bundle could not stand inside a script element.
    """
    try:
        import vl_convert
    except ImportError:
        return None
    version = str(getattr(vl_convert, "__version__", "unknown"))
    directory = _cache_directory()
    path = directory and directory / f"vega-{version}-{_digest(_OPENING + _SNIPPET + _CLOSING)[:8]}.js"
    cached = path and _read(path)
    if cached:
        return cached
    script = _script(vl_convert.javascript_bundle(_SNIPPET))
    if path:
        _write(path, script)
    return script


def _script(bundle: str) -> str:
    """The bundle as a script that leaves nothing but its own name in the page's global scope."""
    unified = bundle.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\\0")
    script = _OPENING + unified + _CLOSING
    lowered = script.lower()
    if "</script" in lowered or "<!--" in lowered:
        raise RuntimeError("vl-convert's JavaScript bundle contains markup that would end its script element early.")
    return script


def _cache_directory() -> Path | None:
    """Where the bundle is kept; None where there is no home, because a report can be drawn without a cache."""
    own = os.environ.get("PROBEKIT_CACHE")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(shared) if shared else Path.home() / ".cache") / "probekit"
    except RuntimeError:
        return None


def _read(path: Path) -> str | None:
    try:
        digest, _, script = path.read_bytes().decode("utf-8").partition("\n")
    except (OSError, UnicodeDecodeError):
        return None
    return script if digest == f"// {_digest(script)}" else None


def _write(path: Path, script: str) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Under a name of its own and then renamed, so that a second process never reads half a file.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".tmp", delete=False) as file:
            temporary = Path(file.name)
            try:
                file.write(f"// {_digest(script)}\n{script}".encode())
                file.flush()
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
