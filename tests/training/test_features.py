"""Features that are computed once: what is computed again and what is not, also after an interruption."""

import json

import numpy as np
import pytest

from altclip_jax import AltCLIPProcessor, parallel
from altclip_jax.data.bad_samples import BadSamples
from altclip_jax.data.batches import Batches
from altclip_jax.sweep import Sweep
from altclip_jax.training.features import Features, computed_once
from altclip_jax.training.streams import Lookup, image_text_stream, open_mixture, text_pair_stream

ROWS, WIDTH = 10, 3
OF = {"sources": ["a"]}


class Computation:
    """Gives row i the numbers i, i + .1, i + .2, and can be interrupted, meet unreadable samples or lose some once."""

    def __init__(self, bad=(), fails_at=None, lost=()):
        self.bad, self.fails_at, self.lost, self.asked = bad, fails_at, set(lost), []

    def __call__(self, there):
        for name in range(len(there)):  # one by one, as a walk that looks at what is there when it comes to it
            if there[name]:
                continue
            if name in self.lost:
                self.lost.remove(name)
                continue
            if name == self.fails_at:
                raise KeyboardInterrupt
            self.asked.append(name)
            if name not in self.bad:
                yield np.array([name]), np.array([[name, name + 0.1, name + 0.2]], np.float32)


def computed(folder, computation, rows=ROWS, of=OF, **options):
    return computed_once(folder / "features" / "image.npy", rows, WIDTH, of, computation, **options)


def description(folder):
    return json.loads((folder / "features" / "image.json").read_text())


@pytest.fixture
def of_an_earlier_release(tmp_path):
    """Makes a file that release 0.1.0 calls complete: without some rows, and with others that are not theirs."""

    def make(missing=(), wrong=()):
        computed(tmp_path, Computation(bad=missing))
        features = tmp_path / "features"
        rows = np.load(features / "image.npy")
        rows[list(wrong)] = rows[list(wrong)[::-1]]
        np.save(features / "image.npy", rows)
        written = description(tmp_path)
        del written["format"]
        (features / "image.json").write_text(json.dumps(written))

    return make


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


def test_what_is_there_does_not_change_under_a_computation(tmp_path):
    class Watching(Computation):
        def __call__(self, there):
            assert not there.flags.writeable
            before = there.copy()
            for piece in super().__call__(there):
                yield piece
                np.testing.assert_array_equal(there, before)

    computed(tmp_path, Watching(bad=(2, 7)))


def test_a_pass_tries_what_cannot_be_read_once(tmp_path):
    begun = []

    def walk(rows, **options):
        begun.append(rows)
        yield from ()

    mesh = parallel.make_mesh(data=8)
    sweep = Sweep(mesh, 16, threads=1, log=tmp_path / "bad.jsonl", max_bad_share=0.01)
    assert list(sweep.over(walk, sweep.encoder(lambda params, batch: batch), {}, [], [])) == []
    assert begun == [16]


def test_a_row_that_a_pass_has_lost_is_found_by_the_next(tmp_path):
    found = computed(tmp_path, Computation(bad=(2,), lost=(4, 9)))
    assert found.missing == {2}
    np.testing.assert_allclose(found.rows[[4, 9], 0], [4, 9])


def test_rows_that_an_earlier_release_has_lost_are_computed_and_the_others_are_not(tmp_path, of_an_earlier_release):
    of_an_earlier_release(missing=(1, 3, 5))
    heard, again = [], Computation(bad=(5,))
    found = computed(tmp_path, again, say=heard.append)
    assert found.missing == {5}
    np.testing.assert_allclose(found.rows[:5, 0], range(5))
    assert again.asked[-4:] == [1, 3, 5, 5]  # what cannot be read is tried once more
    assert "was computed by an earlier release" in heard[0]
    assert "was said to be complete and lacked 2 samples that can be read" in heard[-1]
    assert not any("wrong" in text for text in heard)
    third = Computation()
    computed(tmp_path, third)
    assert third.asked == []
    assert (description(tmp_path)["format"], description(tmp_path)["complete"]) == (2, True)


def test_features_that_an_earlier_release_computed_of_other_samples_are_computed_anew(tmp_path, of_an_earlier_release):
    of_an_earlier_release(missing=(1,), wrong=(0, 2, 4, 6, 7, 8))
    heard, again = [], Computation()
    found = computed(tmp_path, again, say=heard.append)
    assert again.asked[-ROWS:] == list(range(ROWS))
    np.testing.assert_allclose(found.rows[:, 0], range(ROWS))
    assert any("is wrong, and so is what the run in" in text for text in heard)


def test_a_step_does_not_learn_from_a_row_without_features(tmp_path):
    lookup = Lookup("teacher_features", "example", computed(tmp_path, Computation(bad=(2, 7))))
    added = lookup.add({"example": np.array([1, 3])})
    np.testing.assert_array_equal(added["teacher_features"][:, 0], [1, 3])
    with pytest.raises(ValueError, match=r"no teacher_features of example 2, 7, and zeros in their place"):
        lookup.add({"example": np.array([1, 7, 2, 2])})


@pytest.mark.parametrize("stage", ["contrastive", "teacher"])
def test_samples_without_features_are_bad_samples(settings, workshop, stage):
    config = settings(stage)
    processor = AltCLIPProcessor.from_pretrained(workshop / "student")
    there = np.arange(36) % 3 > 0  # of 18 things with two pictures each, or of 36 pairs
    features = Features(np.zeros((36, WIDTH), np.float32), there)
    if stage == "contrastive":
        stream = image_text_stream(
            config.data, open_mixture(config.data.train, "image_text"), processor, 0, features=features
        )
        good = {thing for thing in range(18) if there[2 * thing : 2 * thing + 2].all()}
    else:
        stream = text_pair_stream(
            config, open_mixture(config.data.train, "text_pairs"), None, processor.tokenizer, features=features
        )
        good = set(np.flatnonzero(there).tolist())
    bad = BadSamples(max_bad_share=1.0)
    with Batches(stream, 16, last_step=6, bad_samples=bad) as batches:
        seen = {example for batch in batches for example in batch.arrays["example"].tolist()}
    assert seen == good
    assert len(bad.names) == len(stream.mixture) - len(good)
    assert all("could not be read when" in reason for reason in bad.names.values())


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
