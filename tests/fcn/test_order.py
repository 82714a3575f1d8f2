"""Which samples a step takes follows from the seed and the number of the step."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from fcn.order import Order
from fcn.parallel import World

orders = st.builds(
    Order,
    num_samples=st.integers(1, 12),
    epochs=st.integers(1, 3),
    batch_size=st.integers(1, 5),
    accumulate=st.integers(1, 3),
    seed=st.integers(0, 9),
)


@given(orders)
def test_every_epoch_takes_every_sample_once(order: Order) -> None:
    taken = list(itertools.chain.from_iterable(order.batches(0, World())))
    assert [epoch for epoch, _ in taken] == sorted(epoch for epoch, _ in taken)
    assert sorted(taken) == list(itertools.product(range(order.epochs), range(order.num_samples)))


@given(orders, st.integers(0, 30))
def test_a_training_goes_on_with_the_next_samples(order: Order, step: int) -> None:
    step %= order.num_steps + 1
    taken = list(itertools.chain.from_iterable(order.batches(0, World())))
    rest = list(itertools.chain.from_iterable(order.batches(step, World())))
    assert rest == taken[order.num_seen(step) :]


@given(orders)
def test_batches_are_as_large_as_is_said(order: Order) -> None:
    said = [size for step in range(order.num_steps) for size in order.batch_sizes(step)]
    assert said == [len(batch) for batch in order.batches(0, World())]
    assert order.batch_sizes(order.num_steps) == []


@given(orders, st.integers(2, 3))
def test_ranks_share_the_samples(order: Order, size: int) -> None:
    shares = [list(order.batches(0, World(rank, size))) for rank in range(size)]
    found = sorted(itertools.chain.from_iterable(itertools.chain.from_iterable(shares)))
    assert found == sorted(itertools.chain.from_iterable(order.batches(0, World())))
