"""The base class of analyses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar, get_args, get_origin

from probekit.analysis.context import Context
from probekit.analysis.joint import JointReport
from probekit.analysis.options import Options
from probekit.analysis.prompt import Prompt
from probekit.analysis.result import Result
from probekit.report import Page

if TYPE_CHECKING:
    from probekit.subject import Subject

OptionsT = TypeVar("OptionsT", bound=Options)


class Analysis(Generic[OptionsT]):
    """An analysis has the subject to itself: `run` turns it and the prompts into a result, `report` a result into a
    page.

    A subclass names its options as the type argument, `class Norms(Analysis[NormOptions])`, and has a `name`; the
    first line of its docstring is what `probekit plugins` shows. Keep torch out of the module's top level: import it
    in `run`.

    An analysis that `consumes` something, such as `("token-sequences",)`, runs after the others of a run and finds
    their results in `self.context.results`. Analyses with the same `joint_report` are compared on a page on top.
    """

    name: ClassVar[str] = ""
    options_model: ClassVar[type[Options]] = Options
    consumes: ClassVar[tuple[str, ...]] = ()
    joint_report: ClassVar[JointReport | None] = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for base in getattr(cls, "__orig_bases__", ()):
            origin = get_origin(base)
            if isinstance(origin, type) and issubclass(origin, Analysis):
                argument = get_args(base)[0]
                if isinstance(argument, type) and issubclass(argument, Options):
                    cls.options_model = argument

    def __init__(self, options: OptionsT, context: Context | None = None) -> None:
        self.options = options
        self.context = context or Context()

    @classmethod
    def summary(cls) -> str:
        """The first line of the class's own docstring."""
        return (cls.__dict__.get("__doc__") or "").strip().split("\n")[0]

    def run(self, subject: Subject, prompts: Sequence[Prompt]) -> Result:
        """Compute the result. It prints nothing and leaves no trace on the model; `self.context` shows progress."""
        raise NotImplementedError(f"{type(self).__name__} does not implement run()")

    def report(self, result: Result, page: Page) -> None:
        """Put the result, as read back from disk with numpy arrays, onto the page. Neither a model nor torch is
        there.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement report()")

    def recompute(self, result: Result) -> Result | None:
        """The figures of a saved result once more, for `probekit verify --recompute`: the metrics, tables and the
        finding that follow from what was measured.

        `result` has the saved tensors (numpy arrays), token sequences and files, and no metric, no table and no
        finding; neither a model nor prompts are there. Figures that are left out are told as not recomputed; None
        leaves out all.
        """
        return None
