"""What cannot be used is left out, counted, named once, and too much of it stops the run."""

import json

import numpy as np
import pytest

from altclip_jax.data.bad_samples import BadSamples, TooManyBadSamples
from altclip_jax.data.batches import Batches
from altclip_jax.data.samples import SampleError
from altclip_jax.data.sources import SourceSpec, open_sources
from altclip_jax.data.streams import ImageTextStream, TextPairStream


def fault(number):
    return SampleError(f"sample {number}", "bad")


def logged(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def broken(tmp_path, png):
    """Opens a data set with each kind of bad sample among eight good ones."""
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    (tmp_path / "cut.png").write_bytes(png(9)[:200])
    (tmp_path / "text.png").write_bytes(b"no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    lines = [json.dumps({"image": f"{number}.png", "caption": f"good {number}"}).encode() for number in range(8)]
    lines += [json.dumps({"image": image, "caption": "x"}).encode() for image in IMAGES]
    lines += [b'{"image": "0.png", "caption": "\xff"}', b'{"image": "0.png", "caption": ""}', b"{"]
    (tmp_path / "set.jsonl").write_bytes(b"\n".join(lines))
    return open_sources([SourceSpec(path=str(tmp_path / "set.jsonl"))], "image_text")


IMAGES = ("cut.png", "text.png", "empty.png", "folder.png", "gone.png", "nul\0.png")
REASONS = {
    9: "the picture cut.png is damaged",
    10: "the picture text.png is not a picture",
    11: "the picture empty.png is not a picture",
    12: "the picture folder.png cannot be read (Is a directory)",
    13: "the picture gone.png cannot be read (No such file or directory)",
    14: "is no path",
    15: "it is not UTF-8",
    16: "no caption",
    17: "it is not JSON",
}


def test_every_kind_of_bad_sample_is_replaced_named_and_logged_once(broken, processor, tmp_path):
    log = tmp_path / "logs" / "bad.jsonl"
    stream = ImageTextStream(broken, processor, seed=0, max_length=8)
    bad = BadSamples(log)
    with Batches(stream, 17, last_step=5, bad_samples=bad) as loaded:
        for batch in loaded:
            assert (batch.arrays["example"] < 8).all()
            assert batch.arrays["pixel_values"].shape[0] == 17
    assert bad.read == 17
    assert {int(name.rpartition(":")[2]) for name in bad.names} == set(REASONS)
    for name, reason in bad.names.items():
        assert REASONS[int(name.rpartition(":")[2])] in reason
    assert [(line["sample"], line["reason"]) for line in logged(log)] == list(bad.names.items())


def test_bad_samples_are_the_same_for_any_threads_and_a_resumed_run_logs_only_new_ones(broken, processor, tmp_path):
    stream = ImageTextStream(broken, processor, seed=0, max_length=8)
    counts = []
    for threads in (1, 5):
        bad = BadSamples()
        with Batches(stream, 4, last_step=3, threads=threads, bad_samples=bad) as loaded:
            list(loaded)
        counts.append((list(bad.names), bad.read))
    assert counts[0] == counts[1]
    log = tmp_path / "bad.jsonl"
    for first in (0, 2):
        with Batches(stream, 4, first_step=first, last_step=5, bad_samples=BadSamples(log)) as loaded:
            list(loaded)
        names = [line["sample"] for line in logged(log)]
        assert len(names) == len(set(names))


def test_a_log_that_was_cut_goes_on_in_a_line_of_its_own(tmp_path):
    log = tmp_path / "bad.jsonl"
    log.write_text('{"sample": "sample 1", "reason": "bad"}\n{"sample": "sam')
    BadSamples(log).record([1, 2], [fault(1), fault(2)])
    assert log.read_text().splitlines()[2:] == ['{"sample": "sample 2", "reason": "bad"}']


def test_a_sample_that_two_have_met_is_named_once(tmp_path):
    """Such as the steps of a run and its evaluation, or two processes between which a row moves."""
    log = tmp_path / "bad.jsonl"
    steps, evaluation = BadSamples(log), BadSamples(log)
    steps.record([1], [fault(1)])
    evaluation.record([1, 2], [fault(1), fault(2)])
    steps.record([2, 3], [fault(2), fault(3)])
    assert [line["sample"] for line in logged(log)] == ["sample 1", "sample 2", "sample 3"]
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]


def test_a_few_bad_samples_at_the_start_do_not_stop_a_run():
    bad = BadSamples(max_bad_share=0.01)
    bad.record(range(3), [fault(1)])
    for number in range(2, 11):
        bad.record([number], [fault(number)])
    with pytest.raises(TooManyBadSamples, match=r"11 of 12 samples cannot be used, and max_bad_share=0\.01 is allowed"):
        bad.record([11], [fault(11)])


def test_one_of_several_parts_is_judged_as_if_the_others_were_good_until_all_are_known():
    """Two processes of which one reads all the bad samples, and one that goes on after 5,000 good ones."""
    bad = BadSamples(max_bad_share=0.06, parts=2)
    for first in range(0, 2000, 100):
        bad.record(range(first, first + 100), [fault(number) for number in range(first, first + 10)])
    assert (bad.bad, bad.read) == (200, 2000)
    bad.judge(200, 4000)
    with pytest.raises(TooManyBadSamples, match=r"300 of 4,000 samples cannot be used"):
        bad.judge(300, 4000)
    with pytest.raises(TooManyBadSamples, match=r"241 of 4,000 samples"):
        bad.record([], [fault(number) for number in range(2000, 2041)])
    BadSamples(read=5000).record(range(40), [fault(number) for number in range(40)])


def test_another_process_that_reads_the_same_writes_the_log(tmp_path):
    bad = BadSamples(tmp_path / "bad.jsonl", logs=False)
    bad.record([1], [fault(1)])
    assert bad.names == {"sample 1": "bad"}
    assert not (tmp_path / "bad.jsonl").exists()


def test_without_tolerance_the_first_bad_sample_stops_the_run():
    with pytest.raises(TooManyBadSamples, match="sample 1: bad"):
        BadSamples(max_bad_share=0).record([0], [fault(1)])


def test_the_share_is_of_different_samples():
    bad = BadSamples(max_bad_share=0.01)
    for _ in range(20):
        bad.record(range(1500), [fault(number) for number in range(15)])
    assert bad.read == 1500
    with pytest.raises(TooManyBadSamples, match="16 of 1,501"):
        bad.record([1500], [fault(1500)])


def test_reading_counts_each_id_once_wherever_it_lies():
    bad, seen = BadSamples(), set()
    generator = np.random.default_rng(0)
    for size in (10, 1000, 100_000):
        ids = generator.integers(0, size, 500).tolist()
        bad.record(ids, [])
        seen |= set(ids)
        assert bad.read == len(seen)


def test_the_list_is_cut_and_names_the_log(tmp_path):
    bad = BadSamples(tmp_path / "bad.jsonl", max_bad_share=0)
    with pytest.raises(TooManyBadSamples) as caught:
        bad.record(range(50), [fault(number) for number in range(50)])
    lines = str(caught.value).splitlines()
    assert lines[1:21] == [f"  sample {number}: bad" for number in range(20)]
    assert lines[21:] == ["  and 30 more", f"All are listed in {tmp_path}/bad.jsonl."]
    assert isinstance(caught.value, ValueError)


def test_too_many_bad_samples_stop_the_loader_in_their_turn(processor, image_set, open_images):
    sources = open_images(image_set(30, bad=range(12)))
    stream = ImageTextStream(sources, processor, seed=0, max_length=8)
    taken = []
    with Batches(stream, 3, last_step=10, bad_samples=BadSamples(max_bad_share=0.01)) as loaded:
        with pytest.raises(TooManyBadSamples, match=r"set\.jsonl:\d+: the picture \d+\.png is not a picture"):
            taken.extend(loaded)
        assert 3 < len(taken) < 10
        assert list(loaded) == []


def test_a_source_with_nothing_but_bad_samples_stops_the_loader(processor, image_set, open_images, tmp_path):
    sources = open_images(image_set(5, bad=range(5)))
    stream = ImageTextStream(sources, processor, seed=0, max_length=8)
    log = tmp_path / "bad.jsonl"
    with pytest.raises(
        TooManyBadSamples, match=r"In step 1, .* and all that were tried in its place are bad"
    ) as caught:
        list(Batches(stream, 3, bad_samples=BadSamples(log, max_bad_share=0.5)))
    assert "0.png is not a picture" in str(caught.value)
    assert len(logged(log)) == 5
    with pytest.raises(SampleError, match="is not a picture"):
        stream.prepare(0, 0, 3)


def test_what_was_found_damaged_at_the_start_is_logged_and_judged_by_all_samples(tmp_path, write_tar, png, processor):
    members = {
        f"{number}.{kind}": png(number) if kind == "png" else b"text" for number in range(3) for kind in ("png", "txt")
    }
    for shard in range(11):
        path = write_tar(tmp_path / f"{shard}.tar", members)
        path.write_bytes(path.read_bytes()[:7000])
    sources = open_sources([SourceSpec(path=str(tmp_path / "*.tar"))], "image_text")
    stream = ImageTextStream(sources, processor, seed=0, max_length=8)
    log = tmp_path / "bad.jsonl"
    with Batches(stream, 4, last_step=2, bad_samples=BadSamples(log, max_bad_share=0.011)) as loaded:
        list(loaded)
    assert {line["sample"] for line in logged(log)} == {str(tmp_path / f"{shard}.tar") for shard in range(11)}
    walked = BadSamples(max_bad_share=0.011)
    assert sum(len(batch.names) for batch in stream.all_captions(8, bad_samples=walked)) == 22
    assert len(walked.names) == 11
    with pytest.raises(TooManyBadSamples, match="11 of 22 samples"):
        Batches(stream, 4, bad_samples=BadSamples(max_bad_share=0.01))


def test_what_was_found_damaged_at_the_start_does_not_count_twice():
    bad = BadSamples(max_bad_share=0.01)
    bad.record_faults([fault(number) for number in range(20)], 10_000)
    bad.record([100], [fault(100)])
    assert len(bad.names) == 21


def test_walks_leave_bad_samples_out_and_report_them(broken, processor):
    stream = ImageTextStream(broken, processor, seed=0, max_length=8)
    for walk, count in ((stream.all_examples, 9), (stream.all_pictures, 9), (stream.all_captions, 3)):
        bad = BadSamples()
        examples = [example for batch in walk(3, bad_samples=bad) for example in batch.arrays["example"].tolist()]
        assert examples == list(range(17 - count))
        assert len(bad.names) == count
        assert bad.read == 17
    with pytest.raises(TooManyBadSamples):
        list(stream.all_pictures(3, bad_samples=BadSamples(max_bad_share=0.001)))


def test_bad_pairs_are_replaced(tmp_path, processor):
    lines = [f"word {number}\tmot {number}".encode() for number in range(6)] + [b"empty\t", b"caf\xe9\tx", b"alone"]
    (tmp_path / "a.tsv").write_bytes(b"\n".join(lines))
    sources = open_sources([SourceSpec(path=str(tmp_path / "a.tsv"))], "text_pairs")
    stream = TextPairStream(sources, processor.tokenizer, processor.tokenizer, seed=0, max_length=8)
    bad = BadSamples()
    with Batches(stream, 9, last_step=2, bad_samples=bad) as loaded:
        assert all((batch.arrays["example"] < 6).all() for batch in loaded)
    assert sorted(bad.names) == [f"{tmp_path}/a.tsv:{line}" for line in (7, 8, 9)]
    assert len(list(stream.all_sources(2))) == 3


def test_a_failing_machine_is_no_bad_sample(tmp_path, processor, image_set, open_images, monkeypatch):
    sources = open_images(image_set(5))

    def fails(path):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr("pathlib.Path.read_bytes", fails)
    stream = ImageTextStream(sources, processor, seed=0, max_length=8)
    with pytest.raises(OSError, match="Input/output error"):
        next(Batches(stream, 3))


def test_a_log_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"bad\.jsonl could not be written"):
        BadSamples(tmp_path / "file" / "bad.jsonl").record([0], [fault(0)])
