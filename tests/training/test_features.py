"""Features that are computed once: what is computed again and what is not, also after an interruption."""

import json

import numpy as np
import pytest

from altclip_jax.training.features import computed_once

ROWS, WIDTH = 10, 3
OF = {"sources": ["a"]}


class Computation:
    """Gives row i the numbers i, i + .1, i + .2, and can be interrupted or meet unreadable samples."""

    def __init__(self, bad=(), fails_at=None):
        self.bad, self.fails_at, self.asked = bad, fails_at, []

    def __call__(self, there):
        for name in np.flatnonzero(~there).tolist():
            if name == self.fails_at:
                raise KeyboardInterrupt
            self.asked.append(name)
            if name not in self.bad:
                yield np.array([name]), np.array([[name, name + 0.1, name + 0.2]], np.float32)


def computed(folder, computation, rows=ROWS, of=OF):
    return computed_once(folder / "features" / "image.npy", rows, WIDTH, of, computation)


def test_features_come_back_without_being_computed_again(tmp_path):
    first = computed(tmp_path, Computation())
    again = Computation()
    second = computed(tmp_path, again)
    assert again.asked == []
    expected = np.arange(ROWS, dtype=np.float32)[:, None] + np.float32([0, 0.1, 0.2])
    for found in (first, second):
        np.testing.assert_allclose(found.rows, expected, rtol=1e-6)
        assert found.missing == frozenset()


def test_an_interrupted_computation_goes_on_where_it_was(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        computed(tmp_path, Computation(fails_at=6))
    rest = Computation()
    found = computed(tmp_path, rest)
    assert rest.asked == [6, 7, 8, 9]
    np.testing.assert_array_equal(found.rows[:, 0], np.arange(ROWS))


def test_rows_that_were_written_but_not_marked_are_computed_again(tmp_path):
    """As after a loss of power between the two."""
    with pytest.raises(KeyboardInterrupt):
        computed(tmp_path, Computation(fails_at=6))
    marks = tmp_path / "features" / "image.there.npy"
    data = bytearray(marks.read_bytes())
    data[-ROWS:] = bytes(ROWS)
    marks.write_bytes(data)
    rest = Computation()
    computed(tmp_path, rest)
    assert rest.asked == list(range(ROWS))


def test_what_cannot_be_read_is_missing_and_not_tried_again(tmp_path):
    first = computed(tmp_path, Computation(bad=(2, 7)))
    again = Computation()
    assert first.missing == computed(tmp_path, again).missing == {2, 7}
    assert again.asked == []


@pytest.mark.parametrize("change", [{"rows": ROWS + 1}, {"of": {"sources": ["b"]}}])
def test_other_samples_are_computed_anew(tmp_path, change):
    computed(tmp_path, Computation())
    again = Computation()
    found = computed(tmp_path, again, **change)
    assert again.asked == list(range(len(found.rows)))


def test_a_file_that_was_only_begun_is_no_file(tmp_path):
    """The description is written last, so that what it describes has its full size."""
    computed(tmp_path, Computation())
    (tmp_path / "features" / "image.json").unlink()
    (tmp_path / "features" / "image.npy").write_bytes(b"half")
    assert computed(tmp_path, Computation()).rows.shape == (ROWS, WIDTH)
    assert json.loads((tmp_path / "features" / "image.json").read_text())["complete"] is True


def test_nothing_that_can_be_read_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"nothing to compute image\.npy of"):
        computed(tmp_path, Computation(bad=range(ROWS)))
