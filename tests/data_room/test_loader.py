"""Batches: the same for any threads, processes and interruption; and threads that stop when they are told."""

import itertools
import os
import signal
import threading
import time

import numpy as np
import pytest

from altclip_jax.data.augment import Augmentation
from altclip_jax.data.batches import Ahead, Batches
from altclip_jax.data.order import Order
from altclip_jax.data.streams import ImageTextStream

BATCH = 6


def same(one, other):
    assert one.step == other.step
    assert (one.names, one.languages) == (other.names, other.languages)
    assert one.arrays.keys() == other.arrays.keys()
    for name, array in one.arrays.items():
        assert np.array_equal(array, other.arrays[name]), name


@pytest.fixture
def stream(processor, image_set, open_images):
    sources = open_images(image_set(7, name="a", weight=2), image_set(5, name="b", bad=(3,)))
    augmentation = Augmentation(crop_scale=(0.5, 1), flip=0.5, brightness=0.2)
    return ImageTextStream(sources, processor, seed=5, max_length=12, augmentation=augmentation)


def batches(stream, **options):
    options = {"last_step": 6, **options}
    with Batches(stream, BATCH, **options) as loaded:
        return list(loaded)


def test_batches_come_in_order_and_are_what_the_stream_prepares(stream):
    made = batches(stream)
    assert [batch.step for batch in made] == list(range(6))
    for batch in made:
        assert {name: (array.dtype.name, array.shape) for name, array in batch.arrays.items()} == {
            "example": ("int64", (BATCH,)),
            "input_ids": ("int32", (BATCH, 12)),
            "attention_mask": ("int32", (BATCH, 12)),
            "picture": ("int64", (BATCH,)),
            "pixel_values": ("float32", (BATCH, 3, 32, 32)),
        }
        assert len(batch.names) == len(batch.languages) == BATCH
        assert batch.waited >= 0
        for row in range(BATCH):
            prepared = stream.prepare(batch.step, row, BATCH)
            assert prepared.keys() == batch.arrays.keys()
            assert all(np.array_equal(array, batch.arrays[name][row]) for name, array in prepared.items())


@pytest.mark.parametrize("options", [{"threads": 1}, {"threads": 7}, {"prefetch": 0}, {"threads": 3, "prefetch": 9}])
def test_threads_and_prefetching_change_nothing(stream, options):
    for one, other in zip(batches(stream), batches(stream, **options), strict=True):
        same(one, other)


def test_resuming_at_any_step_gives_the_same_batches(stream):
    whole = batches(stream)
    for first in range(6):
        for one, other in zip(whole[first:], batches(stream, first_step=first), strict=True):
            same(one, other)


@pytest.mark.parametrize("cuts", [(0, 3, 6), (0, 1, 2, 6)])
def test_the_rows_of_two_processes_are_those_of_one(stream, cuts):
    parts = [batches(stream, rows=slice(*cut)) for cut in itertools.pairwise(cuts)]
    for whole, *pieces in zip(batches(stream), *parts, strict=True):
        assert [name for piece in pieces for name in piece.names] == whole.names
        for name, array in whole.arrays.items():
            assert np.array_equal(np.concatenate([piece.arrays[name] for piece in pieces]), array)


def test_samples_come_in_the_order_of_the_mixture(stream):
    sources, indices = Order(5, [7, 5], [2, 1]).locate(0, np.arange(6 * BATCH), 6 * BATCH)
    wanted = indices + np.where(sources == 1, 7, 0)
    found = np.concatenate([batch.arrays["example"] for batch in batches(stream)])
    assert 7 + 3 in wanted  # the bad one
    assert np.array_equal(found[wanted != 10], wanted[wanted != 10])
    assert (found[wanted == 10] >= 7).all()  # another one of its source
    assert 10 not in found


def test_another_seed_gives_other_batches(processor, image_set, open_images):
    sources = open_images(image_set(50))
    streams = [ImageTextStream(sources, processor, seed=seed, max_length=12) for seed in (0, 1)]
    one, other = (np.concatenate([batch.arrays["example"] for batch in batches(stream)]) for stream in streams)
    assert (one != other).mean() > 0.8


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"threads": 0, "first_step": -1}, "threads=0 must be at least 1; first_step=-1 must not be negative"),
        ({"prefetch": -1}, "prefetch=-1"),
        ({"rows": slice(6, 9)}, r"rows=slice\(6, 9, None\) are none of the 6 rows"),
    ],
)
def test_numbers_out_of_range_are_refused(stream, options, what):
    with pytest.raises(ValueError, match=what):
        Batches(stream, BATCH, **options)
    with pytest.raises(ValueError, match="batch_size=0"):
        Batches(stream, 0)


@pytest.mark.parametrize(("before", "after"), [(None, "false"), ("true", "true")])
def test_the_tokenizers_library_starts_no_threads_unless_the_user_wants_them(stream, monkeypatch, before, after):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "")
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    if before:
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", before)
    batches(stream, last_step=1)
    assert os.environ["TOKENIZERS_PARALLELISM"] == after


# threads ---------------------------------------------------------------------------------------------------------


def data_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("altclip-")]


def test_nothing_is_made_further_ahead_than_asked_for(stream):
    planned = []
    choose = stream.choose
    stream.choose = lambda step, rows, size: planned.append(step) or choose(step, rows, size)
    with Batches(stream, BATCH, prefetch=2) as loaded:
        for step in range(3):
            next(loaded)
            assert planned == list(range(step + 4))


def test_an_endless_loader_stops_when_it_is_closed(stream):
    with Batches(stream, BATCH) as loaded:
        next(loaded)
        assert data_threads()
    assert not data_threads()
    assert list(loaded) == []
    loaded.close()


def test_an_endless_loader_begins_where_it_is_told(stream):
    with Batches(stream, BATCH, first_step=3) as loaded:
        for step in range(3, 6):
            same(next(loaded), batches(stream)[step])


def test_closing_waits_for_no_more_than_what_is_being_done():
    begun = []

    def slow(job):
        begun.append(job)
        time.sleep(0.02)
        return job

    ahead = Ahead(iter([list(range(1000))] * 3), slow, list, threads=2, ahead=2)
    ahead.close()
    assert len(begun) <= 4
    assert not data_threads()


def test_who_waits_is_released_when_another_thread_closes():
    started, go = threading.Event(), threading.Event()

    def blocked(job):
        started.set()
        go.wait(10)
        return job

    ahead = Ahead(iter([[1, 2, 3]]), blocked, list, threads=1, ahead=0)
    ended = []
    waiter = threading.Thread(target=lambda: ended.append(list(ahead)))
    waiter.start()
    started.wait(10)
    closer = threading.Thread(target=ahead.close)
    closer.start()
    go.set()
    waiter.join(10)
    closer.join(10)
    assert ended == [[]]


def test_an_error_is_raised_in_its_turn_and_ends_the_iteration():
    def work(job):
        if job == 7:
            raise OSError("the disk is gone")
        return job

    ahead = Ahead(iter([[1, 2], [3, 7], [5, 6]]), work, list, threads=2, ahead=2)
    assert next(ahead)[0] == [1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)
    assert list(ahead) == []
    assert not data_threads()


def test_an_error_in_the_plan_reaches_the_consumer():
    def plan():
        yield [1]
        raise OSError("no plan")

    ahead = Ahead(plan(), lambda job: job, list, threads=1, ahead=0)
    with pytest.raises(OSError, match="no plan"):
        list(ahead)
    assert not data_threads()


def test_an_interrupt_ends_the_wait_and_the_threads():
    def work(job):
        time.sleep(0.01)
        return job

    def interrupt():
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    # a shell that starts something in the background lets it ignore this signal
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    ahead = Ahead(iter([list(range(10_000))]), work, list, threads=2, ahead=0)
    threading.Thread(target=interrupt).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            next(ahead)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not data_threads()
