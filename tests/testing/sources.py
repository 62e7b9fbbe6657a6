"""A good analysis as source, with places at which a test breaks it."""

from __future__ import annotations

GOOD = '''
"""A good analysis."""

import probekit
from pydantic import Field
# TOP


class GoodOptions(probekit.Options):
    sites: probekit.Sites = Field("blocks", description="Sites that are measured.")
    # OPTIONS


class Good(probekit.Analysis[GoodOptions]):
    """Norms of activations."""

    name = "good"

    def run(self, subject, prompts):
        import torch

        result = probekit.Result(finding="Norms.")
        # BEFORE
        sites = subject.expand_sites(self.options.sites)
        with self.context.progress("norms", len(prompts)) as progress:
            for number, prompt in enumerate(prompts):
                captured = subject.capture(prompt.input_ids, sites)
                for site in sites:
                    result.tensors[f"{site}.{number}"] = captured[site][0].norm(dim=-1)
                progress.step()
        noise = torch.rand(3) + torch.rand(3, generator=self.context.generator("noise"))  # both are the run's own
        result.metrics = {"noise": float(noise.sum()), "norm": float(result.tensors["block.0.0"].mean())}
        result.sequences["prompt"] = [
            probekit.TokenSequence(prompt.input_ids[0].tolist(), prompt.tokens) for prompt in prompts
        ]
        result.seconds["all"] = __import__("time").perf_counter()
        # AFTER
        return result

    def report(self, result, page):
        rows = [probekit.TokenRow("prompt", [probekit.Token(text) for text in sequence.tokens])
                for sequence in result.sequences["prompt"]]
        page.tokens(rows)
        names = [name for name in result.tensors if name.endswith(".0")]
        page.heatmap([result.tensors[name].tolist() for name in names], result.sequences["prompt"][0].tokens, names)
        # DRAWN


@probekit.hookimpl
def probekit_analyses():
    return [Good]
'''


def broken(place: str, code: str) -> str:
    """The good analysis with lines of code at one of its places: TOP, OPTIONS, BEFORE, AFTER, DRAWN."""
    before, mark, after = GOOD.partition(f"# {place}")
    assert mark, place
    indent = before.rpartition("\n")[2]
    return before + code.replace("\n", "\n" + indent) + after
