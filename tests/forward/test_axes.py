"""Which axis of what a module returns is which, from the shapes that it was seen to return; and to `[batch, sequence,
width]` and back.

The reference is written by hand for each order of axes: slices, concatenations and einsum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probekit.forward.axes import AS_RETURNED, Axes, compare_shapes


@dataclass(frozen=True)
class Order:
    """An order of axes: the shape that a module returns for prompts of a length, and the prompts' own part of it."""

    shape: Callable[[int, int, int], tuple[int, ...]]  # of batch, sequence and width
    own: Callable[[torch.Tensor, int, int], torch.Tensor]  # of what is returned, batch and sequence
    names: tuple[str | int, ...]  # for a width of 7


ORDERS = {
    "as usual": Order(lambda b, s, h: (b, s, h), lambda x, b, s: x, ("batch", "sequence", 7)),
    "streams behind": Order(
        lambda b, s, h: (b, s, 4, h),
        lambda x, b, s: torch.cat([x[:, :, stream] for stream in range(4)], -1),
        ("batch", "sequence", 4, 7),
    ),
    "streams in front": Order(
        lambda b, s, h: (4, b, s, h),
        lambda x, b, s: torch.cat([x[stream] for stream in range(4)], -1),
        (4, "batch", "sequence", 7),
    ),
    "sequence in front": Order(
        lambda b, s, h: (s, b, h), lambda x, b, s: torch.einsum("sbh->bsh", x), ("sequence", "batch", 7)
    ),
    "width in the middle": Order(
        lambda b, s, h: (b, h, s), lambda x, b, s: torch.einsum("bhs->bsh", x), ("batch", 7, "sequence")
    ),
    "width in front": Order(
        lambda b, s, h: (h, s, b), lambda x, b, s: torch.einsum("hsb->bsh", x), (7, "sequence", "batch")
    ),
    "heads": Order(
        lambda b, s, h: (b, 2, s, h),
        lambda x, b, s: torch.cat([x[:, 0], x[:, 1]], -1),
        ("batch", 2, "sequence", 7),
    ),
    "sequences one after another": Order(
        lambda b, s, h: (b, 3 * s, h),
        lambda x, b, s: torch.cat([x[:, stream * s : (stream + 1) * s] for stream in range(3)], -1),
        ("batch", "3 × sequence", 7),
    ),
    "positions in front": Order(
        lambda b, s, h: (b, 32 + s, h), lambda x, b, s: x[:, 32:], ("batch", "32 + sequence", 7)
    ),
    "positions in front, sequence first": Order(
        lambda b, s, h: (2 + s, b, h), lambda x, b, s: torch.einsum("sbh->bsh", x[2:]), ("2 + sequence", "batch", 7)
    ),
    "rows of a prompt": Order(
        lambda b, s, h: (2 * b, s, h),
        lambda x, b, s: torch.stack([torch.cat([x[2 * prompt], x[2 * prompt + 1]], -1) for prompt in range(b)]),
        ("2 × batch", "sequence", 7),
    ),
    "rows of a prompt, sequence first": Order(
        lambda b, s, h: (s, 3 * b, h),
        lambda x, b, s: torch.stack(
            [torch.cat([x[:, 3 * prompt + row] for row in range(3)], -1) for prompt in range(b)]
        ),
        ("sequence", "3 × batch", 7),
    ),
    "rows and sequences one after another": Order(
        lambda b, s, h: (2 * b, 3 * s, h),
        lambda x, b, s: torch.stack(
            [
                torch.cat(
                    [x[2 * prompt + row, stream * s : (stream + 1) * s] for stream in range(3) for row in (0, 1)], -1
                )
                for prompt in range(b)
            ]
        ),
        ("2 × batch", "3 × sequence", 7),
    ),
}


def measured(order: Order, width: int) -> Axes:
    return compare_shapes({(b, s): order.shape(b, s, width) for b, s in ((1, 4), (2, 4), (1, 2))})


def numbered(shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of that shape with another number in every place: its own flat index."""
    return torch.arange(torch.Size(shape).numel()).reshape(shape)


@pytest.mark.parametrize("name", ORDERS)
def test_each_axis_has_its_name(name: str) -> None:
    assert measured(ORDERS[name], 7).names == ORDERS[name].names
    assert measured(ORDERS[name], 7).in_order == (name == "as usual")


any_order = st.sampled_from(sorted(ORDERS))
size = st.integers(1, 5)


@given(any_order, size, size, size)
def test_the_axes_are_those_of_the_reference_at_every_size(name: str, batch: int, sequence: int, width: int) -> None:
    """Also where two of them are as long as each other."""
    order = ORDERS[name]
    returned = numbered(order.shape(batch, sequence, width))
    arranged = measured(order, width).arrange(returned)
    expected = order.own(returned, batch, sequence)
    assert torch.equal(arranged.reshape(expected.shape), expected)
    assert arranged.shape[:2] == (batch, sequence)
    assert torch.equal(measured(order, width).arrange(returned, sequence), arranged)


@given(any_order, size, size, size)
def test_what_is_arranged_is_restored(name: str, batch: int, sequence: int, width: int) -> None:
    axes = measured(ORDERS[name], width)
    returned = numbered(ORDERS[name].shape(batch, sequence, width))
    for length in (None, sequence):
        assert torch.equal(axes.restore(axes.arrange(returned, length), returned), returned)


@given(any_order, size, size, size)
def test_another_activation_stands_at_the_prompts_own_places_and_nothing_else_changes(
    name: str, batch: int, sequence: int, width: int
) -> None:
    order = ORDERS[name]
    axes = measured(order, width)
    returned = numbered(order.shape(batch, sequence, width))
    places = order.own(returned, batch, sequence).flatten()
    expected = returned.flatten().clone()
    expected[places] = -1 - torch.arange(len(places))
    activation = (-1 - torch.arange(len(places))).reshape(axes.arrange(returned).shape)
    assert torch.equal(axes.restore(activation, returned), expected.reshape(returned.shape))


@given(any_order, size, size, size)
def test_gradients_go_to_the_places_that_are_read(name: str, batch: int, sequence: int, width: int) -> None:
    order = ORDERS[name]
    axes = measured(order, width)
    shape = order.shape(batch, sequence, width)
    places = order.own(numbered(shape), batch, sequence).flatten()
    weights = torch.arange(1.0, len(places) + 1)

    returned = torch.zeros(shape, requires_grad=True)
    (axes.arrange(returned).flatten() * weights).sum().backward()
    expected = torch.zeros(shape).flatten()
    expected[places] = weights
    assert returned.grad is not None
    assert torch.equal(returned.grad.flatten(), expected)

    # And back: what is restored leads to the activation, and at all other places to what was returned.
    everywhere = torch.arange(1.0, expected.numel() + 1)
    activation = torch.zeros(axes.arrange(returned).shape, requires_grad=True)
    kept = torch.zeros(shape, requires_grad=True)
    (axes.restore(activation, kept).flatten() * everywhere).sum().backward()
    assert activation.grad is not None
    assert torch.equal(activation.grad.flatten(), everywhere[places])
    if kept.grad is not None:
        everywhere[places] = 0
        assert torch.equal(kept.grad.flatten(), everywhere)
    else:
        assert len(places) == expected.numel()


@given(
    st.sampled_from([name for name in ORDERS if "one after another" not in name]), size, size, size, st.integers(1, 4)
)
def test_positions_that_a_model_fills_up_behind_a_prompt_are_left_out_and_kept(
    name: str, batch: int, sequence: int, width: int, filled: int
) -> None:
    order = ORDERS[name]
    axes = measured(order, width)
    returned = numbered(order.shape(batch, sequence + filled, width))
    expected = order.own(returned, batch, sequence + filled)[:, :sequence]
    arranged = axes.arrange(returned, sequence)
    assert torch.equal(arranged.reshape(expected.shape), expected)
    assert torch.equal(axes.restore(arranged, returned), returned)
    changed = axes.restore(-1 - arranged, returned)
    assert torch.equal(changed < 0, torch.isin(returned, expected.contiguous()))
    assert torch.equal(changed[changed >= 0], returned[changed >= 0])


# --- shapes that do not say where a prompt's positions are -----------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "two", "half", "names"),
    [
        pytest.param((4, 8), (8, 8), (2, 8), ("batch × sequence", 8), id="batch and sequence in one axis"),
        pytest.param((5, 8), (9, 8), (3, 8), ("batch × sequence", 8), id="the same, with a position in front"),
        pytest.param((4, 8), (4, 8), (2, 8), ("sequence", 8), id="no batch"),
        pytest.param((1, 4, 8), (1, 4, 8), (1, 2, 8), (1, "sequence", 8), id="one row for all prompts"),
        pytest.param((1, 8), (2, 8), (1, 8), ("batch", 8), id="no sequence"),
        pytest.param((1, 4, 8), (2, 4, 8), (1, 4, 8), ("batch", 4, 8), id="as many positions for every length"),
        pytest.param((8,), (8,), (8,), (8,), id="neither"),
        pytest.param((), (), (), (), id="a number"),
        pytest.param(
            (1, 3, 4, 4), (2, 3, 4, 4), (1, 3, 2, 2), ("batch", 3, "sequence", "sequence"), id="an attention map"
        ),
        pytest.param((1, 1, 4), (2, 2, 4), (1, 1, 2), ("batch", "batch", "sequence"), id="two batches"),
        pytest.param((1, 2, 8), (2, 2, 8), (1, 1, 8), ("batch", 2, 8), id="half as many positions"),
        pytest.param((1, 4, 8), (2, 4, 8), (1, 6, 8), ("batch", 4, 8), id="more positions for fewer tokens"),
        pytest.param((1, 3, 8), (2, 3, 8), (1, 1, 8), ("batch", 3, 8), id="fewer positions than tokens"),
        pytest.param(
            (1, 10, 8), (2, 10, 8), (1, 6, 8), ("batch", "2 + 2 × sequence", 8), id="sequences behind a position"
        ),
    ],
)
def test_shapes_that_do_not_show_a_batch_and_a_sequence_leave_the_output_as_it_is(
    one: tuple[int, ...], two: tuple[int, ...], half: tuple[int, ...], names: tuple[str | int, ...]
) -> None:
    axes = compare_shapes({(1, 4): one, (2, 4): two, (1, 2): half})
    assert axes.names == names
    assert (axes.batch, axes.sequence, axes.in_order) == (None, None, False)
    returned, other = torch.randn(two), torch.randn(two)
    assert axes.arrange(returned) is returned
    assert axes.arrange(returned, 4) is returned
    assert axes.restore(other, returned) is other


@pytest.mark.parametrize("shapes", [[(1, 4, 8), (2, 4, 8), (2, 8)], [(4, 8), (2, 4, 8), (2, 8)]])
def test_shapes_with_another_number_of_axes_each_time_say_nothing(shapes: list[tuple[int, ...]]) -> None:
    seen = dict(zip([(1, 4), (2, 4), (1, 2)], shapes, strict=True))
    assert compare_shapes(seen) == AS_RETURNED == Axes(("as returned",), None, None)


# --- models of one length --------------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
def test_of_a_model_of_one_length_the_axis_that_is_as_long_is_the_sequence(length: int, batch: int, width: int) -> None:
    """Also where the width is as long, or where a batch is."""
    axes = compare_shapes({(1, length): (1, length, width), (2, length): (2, length, width)})
    assert axes == Axes(("batch", "sequence", width))
    assert axes.in_order
    axes = compare_shapes({(1, length): (length, 1, width), (2, length): (length, 2, width)})
    returned = numbered((length, batch, width))
    assert axes.names == ("sequence", "batch", width)
    assert torch.equal(axes.arrange(returned), torch.einsum("sbh->bsh", returned))
    assert torch.equal(axes.restore(axes.arrange(returned), returned), returned)


def test_of_a_model_of_one_length_no_axis_as_long_leaves_the_output_as_it_is() -> None:
    axes = compare_shapes({(1, 3): (1, 5, 8), (2, 3): (2, 5, 8)})
    assert axes == Axes(("batch", 5, 8), None, None)
