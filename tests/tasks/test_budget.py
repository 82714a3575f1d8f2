"""What is taken together stays within the budget, in the order it was asked for."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from fcn.bands import Band
from tasks.budget import Budget, Share, budgets, least_budget, most_pixel_bytes, prefetched


def test_taken_bytes_stay_within_the_budget(rng: np.random.Generator) -> None:
    budget, most = Budget(100), [0]
    sizes = rng.integers(1, 101, (6, 30)).tolist()

    def work(sizes: list[int]) -> None:
        with budget.share() as share:
            for size in sizes:
                share.take(size)
                most.append(budget.taken)
                time.sleep(0.0005)
                share.give(size)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, sizes))
    assert 50 < max(most) <= 100
    assert budget.taken == 0


def test_a_large_request_is_not_passed_by_small_ones() -> None:
    budget = Budget(10)
    with budget.share() as share, budget.share() as other, ThreadPoolExecutor(1) as thread:
        share.take(6)
        large = thread.submit(other.take, 10)
        while not budget.waiting:
            time.sleep(0.001)
        assert not share.try_take(1)
        share.give(6)
        large.result(timeout=10)
        assert (budget.taken, other.held) == (10, 10)


def test_what_a_failed_shard_held_is_given_back_once() -> None:
    budget = Budget(10)
    held: list[Share] = []

    def fail() -> None:
        with budget.share() as share:
            held.append(share)
            share.take(8)
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    held[0].give(8)  # by a thread that ends later
    assert budget.taken == 0


def test_next_item_is_begun_only_where_there_is_room() -> None:
    budget, begun = Budget(10), list[int]()
    with budget.share() as share:
        for item, _ in prefetched([4, 5, 6, 10, 1], lambda item: item, share, begun.append):
            assert begun[-1] == {4: 5, 5: 5, 6: 6, 10: 10, 1: 1}[item]
            assert budget.taken <= 10
            share.give(item)
    assert begun == [4, 5, 6, 10, 1]


@pytest.mark.parametrize("turn", range(3))
def test_shards_with_two_budgets_never_wait_for_each_other(
    turn: int, rng: np.random.Generator
) -> None:
    """Six shards like the engine's: windows, batches inside them, encoding in other threads."""
    files, pixels = Budget(20), Budget(20)

    def shard(windows: list[list[int]]) -> int:
        done = 0
        with (
            ThreadPoolExecutor(2) as encoding,
            files.share() as file_share,
            pixels.share() as share,
        ):
            for window, _ in prefetched(windows, lambda window: window[0], file_share, len):
                for batch, _ in prefetched(window, lambda batch: batch, share, str):
                    job: Future[None] = encoding.submit(share.give, batch)
                    done += 1
                job.result()
                file_share.give(window[0])
        return done

    work = rng.integers(1, 21, (6, 10, 5)).tolist()
    before = threading.active_count()
    with ThreadPoolExecutor(6) as threads:
        jobs = [threads.submit(shard, windows) for windows in work]
        assert [job.result(timeout=60) for job in jobs] == [50] * 6
    assert (files.taken, pixels.taken) == (0, 0)
    assert threading.active_count() < before + 14  # no thread is left of each window


def test_least_budget_holds_the_largest_file_and_the_largest_image() -> None:
    least = least_budget(1_000_000, 10_000_000)
    files, pixels = budgets(least, 1_000_000, 10_000_000)
    assert files.size == 10_000_000
    assert files.size + pixels.size == least
    assert budgets(least, 1_000_000, 10_000_000) is budgets(least, 1_000_000, 10_000_000)
    files, pixels = budgets(10 * least, 1_000_000, 10_000_000)
    assert files.size == 10 * least // 4


def test_the_largest_image_takes_more_with_many_heads() -> None:
    assert most_pixel_bytes(num_heads=7) == most_pixel_bytes()  # 6 * 5, below a decoder's 32
    assert most_pixel_bytes(num_heads=9) == most_pixel_bytes() + 8 * 5 - 32
    least = least_budget(1_000_000, 10_000_000, num_heads=9)
    assert least == least_budget(1_000_000, 10_000_000) + 8_000_000
    files, pixels = budgets(least, 1_000_000, 10_000_000, num_heads=9)
    assert (files.size, files.size + pixels.size) == (10_000_000, least)


def test_the_largest_image_takes_more_with_bands() -> None:
    near, depth, height = (
        Band(name, dtype, 0, 1)
        for name, dtype in (("nir", "uint8"), ("depth", "uint16"), ("height", "float32"))
    )
    assert most_pixel_bytes() == 32 + 3 + 5
    assert most_pixel_bytes([near]) == most_pixel_bytes() + 1
    assert most_pixel_bytes([depth, height]) == most_pixel_bytes() + 2 + 4
    # Eight floats: the image stacked, 44 bytes, and 5 to fill one in are above a decoder's 32.
    many = [replace(height, name=f"b{index}") for index in range(8)]
    assert most_pixel_bytes(many) == 3 + 5 + 8 * 4 + (4 * 11 + 5)
    least = least_budget(1_000_000, 10_000_000, [depth, height])
    assert least == least_budget(1_000_000, 10_000_000) + 6_000_000
    files, pixels = budgets(least, 1_000_000, 10_000_000, (depth, height))
    assert (files.size, files.size + pixels.size) == (10_000_000, least)
