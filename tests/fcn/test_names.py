import pytest

from fcn.names import check_band_name, check_head_name


@pytest.mark.parametrize("name", ["geo", "layer2", "near_ir", "rles", "a_rle"])
def test_names_of_columns_and_folders(name: str) -> None:
    check_head_name(name)
    check_band_name(name)


@pytest.mark.parametrize("name", ["", "a__b", "_a", "a_", "a-b", "a/b", "é", "a\n"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="is no name of a band: expected letters and digits"):
        check_band_name(name)
    with pytest.raises(ValueError, match="is no name of a head: expected letters and digits"):
        check_head_name(name)


@pytest.mark.parametrize("name", ["3d", "rle", "rle_x"])
def test_names_of_bands_that_no_head_may_have(name: str) -> None:
    check_band_name(name)
    with pytest.raises(ValueError, match="no name of a head: it begins with a digit, or with rle"):
        check_head_name(name)
