"""The inversion itself: prompts × restarts as one batch of independent rows, descended together and decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from probekit import AnalysisError, UsageError, rows_that_fit
from probekit_plugins.batches import Batches
from probekit_plugins.gradient_inverter.fitting import of_the_head, rows_of_a_descent
from probekit_plugins.gradient_inverter.masks import Masks
from probekit_plugins.gradient_inverter.objective import Map, Objective, matched_positions, site_map
from probekit_plugins.gradient_inverter.optimizers import make, rate_at
from probekit_plugins.gradient_inverter.regression import expected_embeddings
from probekit_plugins.gradient_inverter.rescoring import Judge, sweep
from probekit_plugins.gradient_inverter.scoring import Figures
from probekit_plugins.gradient_inverter.spaces import Space, decode
from probekit_plugins.precision import at_least_single

if TYPE_CHECKING:
    from probekit import Context, LayerMaps, Prompt, Subject
    from probekit_plugins.gradient_inverter import GradientInverterOptions
    from probekit_plugins.gradient_inverter.together import Together

# How often the loss of the prompt's own embeddings is drawn with dropout on, for each restart.
DRAWS = 4


@dataclass
class Descent:
    """What a batch of B rows of T positions came to: S recorded steps, N + 1 losses."""

    losses: torch.Tensor  # [N + 1, B], before each step and after the last
    recorded_steps: torch.Tensor  # [S]
    recorded: torch.Tensor  # [S, B, T, d], the embeddings at those steps, the last at the end; on the CPU

    def on(self, device: torch.device) -> Descent:
        """The same with its losses on a device."""
        return Descent(self.losses.to(device), self.recorded_steps.to(device), self.recorded)

    @classmethod
    def joined(cls, parts: Sequence[Descent]) -> Descent:
        """Several batches as one."""
        return cls(
            torch.cat([part.losses for part in parts], 1),
            parts[0].recorded_steps,
            torch.cat([part.recorded for part in parts], 1),
        )


class Inversion:
    """One site, P prompts of up to T tokens, R restarts of each: `P × R` rows.

    Shorter prompts are padded on the right, and the padding is masked. `label` tells what is kept of this inversion
    from another's of the same site, and leaves its random numbers as they are. `through` is what the target passes
    through: an autoencoder.
    """

    def __init__(
        self,
        subject: Subject,
        prompts: Sequence[Prompt],
        site: str,
        allowed: torch.Tensor | None,
        options: GradientInverterOptions,
        context: Context,
        batches: Batches | None = None,
        label: str = "",
        through: Map | None = None,
    ) -> None:
        self._subject, self._prompts, self._site = subject, prompts, site
        self._allowed, self._options, self._context = allowed, options, context
        self._batches, self._label = batches or Batches(context, options), label
        subject.check_finite(subject.embedding_matrix, "The token embedding")  # the starts' σ is its own
        self.space = Space(subject, allowed, options)
        mask = matched_positions(prompts, options)
        self._ids, padding = subject.batch([prompt.input_ids for prompt in prompts])
        self._padding = None if bool(padding.all()) else padding
        self._rows = torch.arange(len(prompts), device=padding.device).repeat_interleave(options.restarts)
        shared = not subject.reads_ids(site) and self._padding is None
        self._map = site_map(subject, site, options, None) if shared else None
        self._embeddings = at_least_single(subject.embed(self._ids))
        self._masks = Masks(context, site, options.dropout)
        tokens, head = self._ids.shape[1], of_the_head(subject, self._ids.shape[1], options)
        # Without gradients; also where rows descend together with another site's.
        self._at_once = self._batches.estimated(
            len(self._rows),
            lambda count: rows_that_fit(subject, site, tokens, count, beside=head),
            self._kept(f"{site}/forward"),
        )
        target = self._activations("target", through)
        self.drops = options.dropout and not torch.equal(self._activations("target again"), target)
        subject.check_finite(target, f"The activation at {site}")
        if target.shape[1] != mask.shape[1]:
            for name, given in (("target_positions", options.target_positions != "all"), ("through", through)):
                if given:
                    raise UsageError(
                        f"The activation at {site} has {target.shape[1]} positions, a prompt {mask.shape[1]}, so none "
                        f"of the prompt's can be chosen there; leave out -o {name}."
                    )
        self._target, self._mask = target, mask.to(target.device)
        self._expected: torch.Tensor | None = None
        if options.start == "regression":
            lengths = [len(prompt.tokens) for prompt in prompts]
            found = expected_embeddings(subject, site, target, lengths, context, self._batches)
            self._expected = found.to(self._embeddings)

    def _kept(self, key: str) -> str:
        """The name under which something of this inversion is kept."""
        return f"{self._label}{key}"

    def _activations(self, masks: str, through: Map | None = None) -> torch.Tensor:
        """`O(e*)` for every prompt, through an autoencoder if there is one."""

        def of(chosen: slice) -> torch.Tensor:
            prompts = torch.arange(len(self._prompts), device=self._rows.device)[chosen]
            with torch.no_grad(), self._masks(_of_part(masks, chosen)):
                return self._map_of(prompts, through)(self._embeddings[chosen])

        return self._batches.joined(len(self._prompts), of, self._kept(f"{self._site}/{masks}"), self._at_once)

    def objective(self, chosen: slice = slice(None)) -> Objective:
        """The objective of some rows of the batch, or of all."""
        prompts = self._rows[chosen]
        there = prompts.to(self._target.device)
        return Objective(self._map_of(prompts), self._target[there], self._mask[there], self._options)

    def _map_of(self, prompts: torch.Tensor, through: Map | None = None) -> Map:
        """The site's map, one for all rows; where blocks read the token ids again, or prompts are padded, one with
        those of each row.
        """
        if self._map and not through:
            return self._map
        padding = None if self._padding is None else self._padding[prompts]
        return site_map(self._subject, self._site, self._options, self._ids[prompts], padding, through)

    def _draw(self, purpose: str, width: int, chosen: slice) -> torch.Tensor:
        """Standard normal noise `[rows, T, width]`, the same for a prompt whatever stands beside it."""
        restarts, first = self._options.restarts, chosen.start
        drawn = torch.zeros(chosen.stop - first, self._ids.shape[1], width)
        for number in range(first // restarts, -(-chosen.stop // restarts)):
            generator = self._context.generator(f"{purpose}/{number}/{self._site}")
            length = len(self._prompts[number].tokens)
            noise = torch.randn(restarts, length, width, generator=generator)
            begin, end = max(first, number * restarts), min(chosen.stop, (number + 1) * restarts)
            drawn[begin - first : end - first, :length] = noise[begin - number * restarts : end - number * restarts]
        return drawn.to(self._embeddings)

    def starts(self, chosen: slice | None = None) -> torch.Tensor:
        """`s·N(mean, σ) + t·x*`, or around the regression, for some rows, or every one."""
        options, chosen = self._options, chosen or slice(0, len(self._rows))
        drawn = self._draw("start", self.space.width, chosen)
        prompts = self._rows[chosen]
        target, ids = self._embeddings[prompts], self._ids[prompts]
        if self._expected is None:
            noise = options.start_mean + self.space.sigma * drawn
            start = self.space.start(noise, target, ids, (options.noise_share, options.target_share))
        else:
            start = self._around_expected(self._expected[prompts], drawn, chosen)
        if self._padding is None:
            return start
        # Padding stays what it is: at a vector of zeros some models have no finite gradient, masked or not.
        padding = self.space.start(torch.zeros_like(drawn), target, ids, (0.0, 1.0))
        return torch.where(self._padding[prompts, :, None].to(start.device) > 0, start, padding)

    def _around_expected(self, expected: torch.Tensor, drawn: torch.Tensor, chosen: slice) -> torch.Tensor:
        """The first restart at `E[e | a]`, the others at `N(E[e | a], σ)`; noise alone where no activation is known."""
        rows = torch.arange(chosen.start, chosen.stop, device=drawn.device)
        sigma = torch.where(rows % self._options.restarts == 0, 0.0, self.space.sigma)[:, None, None]
        matched = self._mask.to(drawn.device)[self._rows[chosen].to(drawn.device)][..., None] > 0
        return torch.where(matched, expected + sigma * drawn, self.space.spread * drawn)

    def descend_rows(self, chosen: slice, key: str, together: Together | None = None) -> Descent:
        """`x_{n+1} = x_n − η_n ∇ loss(e(x_n))` for some rows at once, or for those of several sites; its state is
        saved, and taken up again.
        """
        options, space = self._options, self.space
        objective = together.objective(chosen) if together else self.objective(chosen)
        x = together.starts(chosen) if together else self.starts(chosen)
        where = together.name if together else self._site
        prior = space.prior if space.has_prior else None
        losses: list[torch.Tensor] = []
        recorded: list[torch.Tensor] = []

        def loss(values: torch.Tensor) -> torch.Tensor:
            with self._masks(f"{key}/step {len(losses)}"):
                return objective(space.embeddings(values))

        # Masks of dropout are drawn anew for each step, by its number.
        captured = self._subject.captures_steps and not options.dropout
        optimizer = make(options.optimizer, x, loss, prior, self._subject.repeated if captured else None)

        def record(step: int) -> None:
            embeddings = space.embeddings(x).detach().clone()
            if not bool(torch.isfinite(embeddings).all()):
                raise AnalysisError(
                    f"The descent at {where} left the finite numbers by step {step}; lower the learning rate "
                    f"(-o learning_rate={space.rate / 10:.2g})."
                )
            recorded.append(embeddings)

        def state() -> dict[str, torch.Tensor]:
            kept = {"x": x, "losses": torch.stack(losses), "recorded": torch.stack(recorded)}
            return {**kept, **optimizer.state()}

        with self._context.loop(self._kept(where), options.steps, self._kept(key)) as loop:
            if loop.start:
                with torch.no_grad():
                    x.copy_(loop.state["x"])
                losses += loop.state["losses"].to(x.device).unbind()
                recorded += loop.state["recorded"].to(x.device).unbind()
                optimizer.restore(loop.state)
            for step in range(loop.start, options.steps):
                if step % options.record_every == 0:
                    record(step)
                losses.append(optimizer.step(rate_at(step, space.rate, options)))
                space.clamp(x)
                loop.end_step(state, loss=losses[-1].min)
        record(options.steps)
        with torch.no_grad(), self._masks(f"{key}/step {options.steps}"):
            losses.append(objective(recorded[-1]))
        steps = torch.tensor([*range(0, options.steps, options.record_every), options.steps])
        return Descent(torch.stack(losses), steps, torch.stack(recorded))

    def descend(self) -> Descent:
        """All rows, in as few batches as memory allows; each finished batch is kept for a run that is resumed."""
        where, count = self._kept(self._site), len(self._rows)
        most = self._batches.estimated(count, self._rows_that_fit, where)
        return Descent.joined(self._batches.parts(count, self._descend_once, where, most))

    def _rows_that_fit(self, count: int) -> int:
        tokens = self._ids.shape[1]
        return rows_of_a_descent(self._subject, self._site, tokens, count, self._options, self.space, self.one_row)

    def one_row(self) -> torch.Tensor:
        """The loss of the first row with its graph, for what that takes of memory."""
        rows = self._rows[:1]
        padding = None if self._padding is None else self._padding[rows]
        # A map of its own: a second call would record its route, and compile for a shape that nothing else has.
        layer_map = site_map(self._subject, self._site, self._options, self._ids[rows], padding, repeated=False)
        there = rows.to(self._target.device)
        objective = Objective(layer_map, self._target[there], self._mask[there], self._options)
        with self._masks("one row, for its memory"):
            x = self.starts(slice(0, 1)).requires_grad_()
            return objective(self.space.embeddings(x))

    def maps_with(self, sites: Sequence[str], chosen: slice) -> LayerMaps:
        """The maps of several sites for the same rows of each."""
        prompts = self._rows[chosen]
        ids = self._ids[prompts] if any(self._subject.reads_ids(site) for site in sites) else None
        padding = None if self._padding is None else self._padding[prompts]
        return self._subject.layer_maps(sites, ids, padding)

    @property
    def site(self) -> str:
        return self._site

    @property
    def size(self) -> tuple[int, int]:
        """How many rows there are, and how many positions each has."""
        return len(self._rows), self._ids.shape[1]

    def _descend_once(self, chosen: slice) -> Descent:
        key = f"{self._site}/rows {chosen.start} to {chosen.stop}"
        kept = self._context.stage(self._kept(key), lambda: vars(self.descend_rows(chosen, key)))
        return Descent(**kept).on(self._embeddings.device)

    def shifted_losses(self, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings `e′ = e* + N(0, σ)` for every row, and their losses: m."""
        everything = slice(0, len(self._rows))
        shifted = self._embeddings[self._rows] + sigma * self._draw("shift", self._embeddings.shape[-1], everything)
        return shifted, self._losses(shifted, f"shifted by {sigma}")

    def dropout_losses(self) -> list[torch.Tensor]:
        """`‖O(e*) − t‖` by dropout alone, for each prompt `[draws, R]`."""
        answer = self._embeddings[self._rows]
        drawn = torch.stack([self._losses(answer, f"the answer, draw {draw}") for draw in range(DRAWS)])
        return list(drawn.split(self._options.restarts, 1))

    def _losses(self, embeddings: torch.Tensor, masks: str) -> torch.Tensor:
        """Losses of every row, a prompt's restarts at a time."""
        restarts = self._options.restarts

        def of(chosen: slice) -> torch.Tensor:
            with torch.no_grad(), self._masks(_of_part(f"{masks}/{first}", chosen)):
                rows = slice(first + chosen.start, first + chosen.stop)
                return self.objective(rows)(embeddings[rows])

        found = []
        for first in range(0, len(self._rows), restarts):
            where = self._kept(f"{self._site}/{masks}/{first}")
            found.append(self._batches.joined(restarts, of, where, self._at_once))
        return torch.cat(found)

    def figures(self, descent: Descent | None = None) -> list[Figures]:
        """Everything that is known of each prompt after the descent, which may have been made with other sites'."""
        options, restarts = self._options, self._options.restarts
        descent = descent or self.descend()
        last = descent.recorded[-1].to(self._embeddings.device)
        recorded = (embeddings.to(last) for embeddings in descent.recorded)
        recorded_ids = torch.stack(
            [decode(self._subject, each, self._allowed, options, 1)[..., 0] for each in recorded]
        )
        top_k_ids = decode(self._subject, last, self._allowed, options, options.top_k)
        decoded = self._embedded(top_k_ids[..., 0])
        discrete = self._losses(decoded, "decoded")
        rescored = self._rescored(last) if options.rescore else None
        rescored_losses = None if rescored is None else self._losses(self._embedded(rescored), "rescored")
        shifted, shifted_losses = map(
            torch.stack, zip(*map(self.shifted_losses, dict.fromkeys(options.shift_sigma)), strict=True)
        )
        found = []
        for number, prompt in enumerate(self._prompts):
            chosen, length = slice(number * restarts, (number + 1) * restarts), len(prompt.tokens)
            found.append(
                Figures(
                    losses=descent.losses[:, chosen],
                    recorded_steps=descent.recorded_steps,
                    recorded_ids=recorded_ids[:, chosen, :length],
                    embeddings=last[chosen, :length],
                    target_embeddings=self._embeddings[number, :length],
                    decoded_embeddings=decoded[chosen, :length],
                    top_k_ids=top_k_ids[chosen, :length],
                    discrete_losses=discrete[chosen],
                    rescored_ids=None if rescored is None else rescored[chosen, :length],
                    rescored_losses=None if rescored_losses is None else rescored_losses[chosen],
                    shifted_losses=shifted_losses[:, chosen],
                    shifted_embeddings=shifted[:, chosen, :length],
                )
            )
        return found

    def _embedded(self, ids: torch.Tensor) -> torch.Tensor:
        return at_least_single(self._subject.embed(ids))

    def _rescored(self, embeddings: torch.Tensor) -> torch.Tensor:
        """The best of the candidates for embeddings `[B, T, d]`, as tokens `[B, T]`."""
        size = self._subject.vocabulary if self._allowed is None else len(self._allowed)
        candidates = decode(self._subject, embeddings, self._allowed, self._options, min(self._options.rescore, size))
        judge = Judge(self._subject, self._site, self._options, self._ids, self._padding, self._target, self._mask)
        open_ = judge.heard(self._rows).to(candidates.device)

        def losses(ids: torch.Tensor, rows: torch.Tensor, position: int) -> torch.Tensor:
            def of(chosen: slice) -> torch.Tensor:
                with torch.no_grad(), self._masks(_of_part(f"rescored/{position}", chosen)):
                    return judge.losses(ids[chosen], self._rows[rows[chosen]], position)

            where = self._kept(f"{self._site}/rescored/{position}")
            return self._batches.joined(len(ids), of, where, judge.most_at_once)

        key = self._kept(f"{self._site}/rescored")
        return sweep(candidates, open_, losses, self._context, key, key)


def _of_part(masks: str, chosen: slice) -> str:
    """The label of the masks of a part of a batch."""
    return f"{masks}, from {chosen.start}" if chosen.start else masks
