"""The one Vega runtime of a page: taken from vl-convert, kept on disk by its version.

Bundling takes vl-convert a few seconds, and the bundle only changes with vl-convert, so it is kept in the cache. A
cached file names the hash of its own text, so that a truncated or altered one is made again rather than put into a
report.
"""

import hashlib

from probekit import cache

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
    name = f"vega-{version}-{_digest(_OPENING + _SNIPPET + _CLOSING)[:8]}.js"
    if cached := _read(name):
        return cached
    script = _script(vl_convert.javascript_bundle(_SNIPPET))
    cache.write(name, f"// {_digest(script)}\n{script}".encode())
    return script


def _script(bundle: str) -> str:
    """The bundle as a script that leaves nothing but its own name in the page's global scope."""
    unified = bundle.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\\0")
    script = _OPENING + unified + _CLOSING
    lowered = script.lower()
    if "</script" in lowered or "<!--" in lowered:
        raise RuntimeError("vl-convert's JavaScript bundle contains markup that would end its script element early.")
    return script


def _read(name: str) -> str | None:
    try:
        digest, _, script = (cache.read(name) or b"").decode("utf-8").partition("\n")
    except UnicodeDecodeError:
        return None
    return script if digest == f"// {_digest(script)}" else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
