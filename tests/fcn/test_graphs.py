from fcn.graphs import Recurring


def made_for(keys: list[int], num_kept: int = 8) -> list[int]:
    """Keys in the order in which something was made for them."""
    made: list[int] = []

    def make(key: int) -> str:
        made.append(key)
        return f"graph of {key}"

    recurring = Recurring(make, num_kept)
    for key in keys:
        assert recurring.find(key) in (None, f"graph of {key}")
    return made


def test_ten_thousand_sizes_make_nothing() -> None:
    assert made_for(list(range(10_000)) * 3) == []


def test_a_size_that_recurs_is_made_once() -> None:
    assert made_for([7] * 3) == []
    assert made_for([7] * 500) == [7]


def test_sizes_that_take_turns_are_made_seldom() -> None:
    made = made_for([0, 1, 2] * 1000, num_kept=2)
    assert set(made) == {0, 1, 2}
    assert len(made) <= 3 * 10  # log2(1000)


def test_the_last_used_are_kept() -> None:
    made = made_for([*[0] * 4, *[1] * 4, 0, *[2] * 4, 0, 0], num_kept=2)
    assert made == [0, 1, 2]


def test_what_cannot_be_made_is_asked_for_seldom() -> None:
    asked: list[int] = []
    recurring: Recurring[int, str] = Recurring(asked.append)
    assert {recurring.find(1) for _ in range(100)} == {None}
    assert len(asked) == 5  # at 4, 8, 16, 32, 64
