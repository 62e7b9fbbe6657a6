"""HTML written by others (`_repr_html_`) as a document of its own, in a frame where nothing runs and nothing loads.

Three walls stand one behind the other. The text is cleaned when it is added and again when it is read back: only known
elements and attributes are written out again, so what a browser reads is what was checked. The frame is sandboxed
without scripts, forms, popups and navigation. And it is under the page's content-security policy, which a frame with
`srcdoc` inherits: therefore style attributes are moved into one style sheet, whose hash the policy allows.
"""

import re
from dataclasses import dataclass
from html import escape
from html.parser import HTMLParser

from probekit.report.characters import plain, without_surrogates

# Beyond it, Python's parser can take minutes over broken markup.
MOST_CHARACTERS = 500_000

_TEXT = """a abbr address article aside b bdi bdo big blockquote br caption center cite code col colgroup data dd del
details dfn div dl dt em figcaption figure font footer h1 h2 h3 h4 h5 h6 header hr i img input ins kbd label legend li
main mark menu meter nav ol p pre progress q rp rt ruby s samp section small span strike strong sub summary sup table
tbody td tfoot th thead time tr tt u ul var wbr"""
_DRAWING = """svg circle clippath defs desc ellipse g line lineargradient marker mask path pattern polygon polyline
radialgradient rect stop symbol text textpath tspan use"""
_TEXT_ATTRIBUTES = """abbr align alt bgcolor border cellpadding cellspacing checked class color cols colspan datetime
dir disabled face for headers height high hspace id lang low max min nowrap open optimum reversed role rowspan rules
scope size span start summary tabindex title type valign value vspace width"""
_DRAWING_ATTRIBUTES = """clip-path clip-rule clippathunits cx cy d dominant-baseline dx dy fill fill-opacity fill-rule
font-family font-size font-style font-weight gradienttransform gradientunits letter-spacing marker-end marker-mid
marker-start markerheight markerunits markerwidth mask offset opacity orient paint-order pathlength patterncontentunits
patterntransform patternunits points preserveaspectratio r refx refy rotate rx ry spreadmethod stop-color stop-opacity
stroke stroke-dasharray stroke-dashoffset stroke-linecap stroke-linejoin stroke-miterlimit stroke-opacity stroke-width
text-anchor textlength transform vector-effect viewbox visibility x x1 x2 xmlns y y1 y2"""
_DRAWN = frozenset(_DRAWING.split())
_ELEMENTS = frozenset(_TEXT.split()) | _DRAWN
_ATTRIBUTES = frozenset(_TEXT_ATTRIBUTES.split() + _DRAWING_ATTRIBUTES.split())
_VOID = frozenset(("br", "col", "hr", "img", "input", "wbr"))
# What is inside these is no text for a reader.
_DROPPED_WHOLE = frozenset(("script", "title", "template", "iframe", "object", "noscript", "textarea", "select"))
_COUNTED = {
    "script": "script",
    "link": "link",
    "img": "picture from elsewhere",
    "iframe": "frame",
    "object": "embedded object",
    "embed": "embedded object",
    "form": "form",
    "handler": "handler",
}
# What can draw with another element of the same HTML, such as an icon.
_REFERRING = ("use", "lineargradient", "radialgradient", "pattern", "textpath")
_PICTURE = re.compile(r"data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/=\s]+")
_LOCAL = re.compile(r"#[\w.:-]+")

_URL = re.compile(r"""url\(\s*(?:"[^"]*"|'[^']*'|[^()"'\s]*)\s*\)""", re.IGNORECASE)
_LOCAL_URL = re.compile(r"""url\(\s*["']?#[\w.:-]+["']?\s*\)""", re.IGNORECASE)
_IMPORT = re.compile(r"""@(?:import|namespace|charset)\b(?:"[^"]*"|'[^']*'|[^;"'])*;?""", re.IGNORECASE)
_CSS_ESCAPE = re.compile(r"\\(?:([0-9a-fA-F]{1,6})\s?|(.))", re.DOTALL)
_LOADING = re.compile(
    r"url\(|src\(|image\(|image-set\(|cross-fade\(|element\(|expression\(|@import|@namespace|@charset|@font-face"
    r"|behavior\s*:|-moz-binding|<[a-z/!]",
    re.IGNORECASE,
)

# The page's stricter policy holds as well, in every browser that lets a srcdoc frame inherit it.
_POLICY = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
)

_BASE_STYLE = """:root { color-scheme: light; background: #ffffff; }
body { margin: 0; padding: .5rem; color: #1c2126; font: 14px/1.5 system-ui, -apple-system, "Segoe UI", Roboto,
  "Noto Sans", "Liberation Sans", Arial, sans-serif; overflow-wrap: break-word; }
table { border-collapse: collapse; } th, td { padding: .2rem .5rem; text-align: left; vertical-align: top; }
pre { white-space: pre-wrap; } img, svg { max-width: 100%; }
* { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
"""


@dataclass(frozen=True)
class Cleaned:
    """HTML of known elements and attributes only, what had to go (a sentence or nothing), and whether it shows a thing.

    Cleaning `html` again changes nothing.
    """

    html: str
    remark: str
    shows_something: bool


@dataclass(frozen=True)
class FrameDocument:
    """A whole document for `srcdoc`, and the text of its one style sheet, which the policy must allow by its hash."""

    html: str
    style: str
    has_pictures: bool


def cleaned_html(html: str) -> Cleaned:
    """A fragment of HTML without scripts, handlers, links, forms, frames and anything that would load.

    Invisible characters are shown as in the rest of a report. Pictures stay if they are in the HTML as base64. Raises
    ValueError if it is too long.
    """
    if len(html) > MOST_CHARACTERS:
        raise ValueError(f"HTML on a page has at most {MOST_CHARACTERS:,} characters, but this has {len(html):,}.")
    cleaner = _Cleaner()
    cleaner.feed(without_surrogates(html))
    cleaner.close()
    return Cleaned("".join(cleaner.parts), cleaner.remark(), cleaner.shows_something)


def frame_document(html: str) -> FrameDocument:
    """The document that a frame shows, from HTML that `cleaned_html` gave."""
    hoister = _Hoister()
    hoister.feed(html)
    hoister.close()
    rules = "".join(f".{name} {{ {declarations} }}\n" for declarations, name in hoister.classes.items())
    # In a layer, the author's own sheets yield to what were style attributes, as they did before they were moved. They
    # come last, so that one that does not close its braces takes nothing with it.
    style = f"{_BASE_STYLE}{rules}@layer author {{\n" + "\n".join(hoister.sheets) + "\n}"
    head = f'<meta charset="utf-8">{_POLICY}<style>{style}</style>'
    document = f"<!doctype html><html><head>{head}</head><body>{''.join(hoister.parts)}</body></html>"
    return FrameDocument(document, style, hoister.has_pictures)


def _cleaned_style(style: str) -> str:
    """CSS that loads nothing, or nothing at all where it hides how it would."""
    style = plain(style.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n"))
    style = _IMPORT.sub("", style)
    style = _URL.sub(lambda match: match[0] if _LOCAL_URL.fullmatch(match[0]) else "none", style)
    read = _CSS_ESCAPE.sub(_unescaped, style)
    # Escapes and comments can spell the same thing differently; such a sheet means no good, and is left out whole.
    suspects = (style, read, re.sub(r"/\*.*?(\*/|$)", "", read, flags=re.DOTALL))
    return "" if any(_LOADING.search(_LOCAL_URL.sub("", text)) for text in suspects) else style


def _cleaned_declarations(style: str) -> str:
    """A style attribute that can stand between the braces of a rule without taking what follows with it."""
    text = _cleaned_style(re.sub(r"/\*.*?\*/", " ", style, flags=re.DOTALL).replace("\n", " ")).strip()
    balanced = all(text.count(opening) == text.count(closing) for opening, closing in ("()", "[]"))
    return text if balanced and not re.search(r"[{}\\]|/\*", text) and text.count('"') % 2 == 0 else ""


def _unescaped(match: re.Match[str]) -> str:
    if match[1] is None:
        return match[2]
    point = int(match[1], 16)
    return chr(point) if point <= 0x10FFFF and not 0xD800 <= point <= 0xDFFF else "\ufffd"


def _start_tag(tag: str, attributes: list[tuple[str, str]]) -> str:
    written = [f'{name}="{escape(value)}"' for name, value in attributes]
    return f"<{' '.join([tag, *written])}>"


class _Cleaner(HTMLParser):
    """Writes out again what it knows, and counts what it leaves out."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.shows_something = False
        self._left_out: dict[str, int] = {}
        self._inside: list[str] = []
        self._style: list[str] | None = None

    def remark(self) -> str:
        counted = [f"{count} {name}{'s' if count > 1 else ''}" for name, count in self._left_out.items()]
        return f"Left out, because nothing in a report runs or loads: {', '.join(counted)}." if counted else ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._inside:
            if tag == self._inside[-1]:
                self._inside.append(tag)
            return
        if tag == "style":
            self._style = []
        elif tag in _DROPPED_WHOLE:
            self._leave_out(tag)
            self._inside.append(tag)
        elif tag in _ELEMENTS and not (tag == "input" and dict(attrs).get("type") not in ("checkbox", "radio")):
            kept = self._kept(tag, attrs)
            if tag == "img" and "src" not in dict(kept):
                self._leave_out("img")
                self.handle_data(dict(kept).get("alt", ""))
                return
            self.shows_something |= tag in ("img", "svg")
            self.parts.append(_start_tag(tag, kept))
        else:
            self._leave_out(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._inside:
            if tag == self._inside[-1]:
                self._inside.pop()
        elif tag == "style":
            self._end_style()
        elif tag in _ELEMENTS and tag not in _VOID:
            self.parts.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        if self._style is not None:
            self._style.append(data)
        elif not self._inside:
            self.shows_something |= not data.isspace() and bool(data)
            self.parts.append(escape(plain(data)))

    def parse_html_declaration(self, i: int) -> int:
        # To a browser `<![` opens a comment; Python's parser ends with an AssertionError where it does not know it.
        return self.parse_bogus_comment(i) if self.rawdata.startswith("<![", i) else super().parse_html_declaration(i)

    def close(self) -> None:
        super().close()
        self._end_style()

    def _end_style(self) -> None:
        style = _cleaned_style("".join(self._style or ()))
        self._style = None
        if style.strip():
            self.parts.append(f"<style>{style}</style>")

    def _kept(self, tag: str, attrs: list[tuple[str, str | None]]) -> list[tuple[str, str]]:
        kept: dict[str, str] = {}
        for name, value in attrs:
            # As in a browser, the first of a name counts.
            if name not in kept and (text := self._attribute(tag, name, plain(value or ""))) is not None:
                kept[name] = text
        return list(kept.items())

    def _attribute(self, tag: str, name: str, value: str) -> str | None:
        """The value as it may stand, or None if the attribute is left out."""
        if name.startswith("on"):
            self._leave_out("handler")
            return None
        if name == "style":
            return _cleaned_declarations(value) or None
        if name == "src":
            return value if tag == "img" and _PICTURE.fullmatch(value) else None
        if name in ("href", "xlink:href"):
            if tag == "a":  # it would lead the frame, and not the reader, to another page
                self._leave_out("link")
            return value if tag in _REFERRING and _LOCAL.fullmatch(value) else None
        if tag in _DRAWN and _LOADING.search(_LOCAL_URL.sub("", value)):
            return None
        return value if name in _ATTRIBUTES or name.startswith("aria-") else None

    def _leave_out(self, tag: str) -> None:
        if name := _COUNTED.get(tag):
            self._left_out[name] = self._left_out.get(name, 0) + 1


class _Hoister(HTMLParser):
    """Takes style sheets and style attributes out of HTML that is clean, and puts a class in an attribute's place."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.sheets: list[str] = []
        self.classes: dict[str, str] = {}
        self.has_pictures = False
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "style":
            self._in_style = True
            return
        attributes = {name: value or "" for name, value in attrs}
        if declarations := attributes.pop("style", ""):
            name = self.classes.setdefault(declarations, f"probekit-style-{len(self.classes)}")
            attributes["class"] = f"{attributes.get('class', '')} {name}".strip()
        self.has_pictures |= tag == "img"
        self.parts.append(_start_tag(tag, list(attributes.items())))

    def handle_endtag(self, tag: str) -> None:
        if tag == "style":
            self._in_style = False
        else:
            self.parts.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.sheets.append(data)
        else:
            self.parts.append(escape(data))
