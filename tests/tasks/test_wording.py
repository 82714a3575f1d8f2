from tasks.wording import number_of


def test_one_is_singular_and_thousands_have_a_comma():
    assert [number_of(count, "image") for count in (0, 1, 2, 1200)] == [
        "0 images",
        "1 image",
        "2 images",
        "1,200 images",
    ]
