"""Files that are written whole or not at all."""

import pytest

from jaxrl import files


def test_a_file_takes_the_place_of_the_old_one_at_the_end_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "model.csv"
    path.write_text("old")
    with files.whole(path) as unfinished:
        assert unfinished.suffix == ".csv"
        unfinished.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and [each.name for each in tmp_path.iterdir()] == ["model.csv"]


def test_after_an_error_everything_is_as_it_was(tmp_path):
    path = tmp_path / "model.csv"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), files.whole(path) as unfinished:
        unfinished.write_text("new")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and [each.name for each in tmp_path.iterdir()] == ["model.csv"]
    with pytest.raises(FileNotFoundError), files.whole(tmp_path / "missing" / "model.csv"):
        pass


def test_a_link_is_replaced_and_not_followed(tmp_path):
    target, link = tmp_path / "target.csv", tmp_path / "link.csv"
    target.write_text("old")
    link.symlink_to(target)
    with files.whole(link) as unfinished:
        unfinished.write_text("new")
    assert target.read_text() == "old" and link.read_text() == "new" and not link.is_symlink()
