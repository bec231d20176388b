"""What stands in a batch: captions, pictures and pairs, drawn for (seed, step, row), and walks over everything."""

import json
import pickle
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from altclip_jax import AltCLIPImageProcessor, AltCLIPProcessor
from altclip_jax.assets import PICTURES
from altclip_jax.data.augment import Augmentation, generator_for
from altclip_jax.data.bad_samples import BadSamples
from altclip_jax.data.batches import Batches
from altclip_jax.data.pixels import Pixels
from altclip_jax.data.samples import Picture
from altclip_jax.data.sources import SourceSpec, open_sources
from altclip_jax.data.streams import ImageTextStream, TextPairStream

NAMES = json.loads((PICTURES / "names.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    """Eighteen things, each with two pictures and a name in eleven languages."""
    path = tmp_path_factory.mktemp("emoji") / "emoji.jsonl"
    styles = ("noto", "fxemoji")
    records = [
        {
            "image": [
                str(PICTURES / f"{key}_{style}.png") for style in styles if (PICTURES / f"{key}_{style}.png").exists()
            ],
            "captions": names,
        }
        for key, names in NAMES.items()
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return open_sources([SourceSpec(path=str(path))], "image_text")


@pytest.fixture
def pairs(tmp_path):
    lines = [f"{names['en']}\t{names[code]}\t{code}" for names in NAMES.values() for code in ("zh", "fr")]
    (tmp_path / "pairs.tsv").write_text("source\ttarget\tlanguage\n" + "\n".join(lines), encoding="utf-8")
    return open_sources([SourceSpec(path=str(tmp_path / "pairs.tsv"))], "text_pairs")


def drawn(stream, steps, batch_size=16):
    with Batches(stream, batch_size, last_step=steps) as loaded:
        return list(loaded)


def test_pictures_and_captions_are_those_of_the_processor(emoji, processor):
    stream = ImageTextStream(emoji, processor, seed=0, max_length=16)
    source = emoji.sources[0]
    for batch in drawn(stream, 3):
        for row in range(16):
            sample = source.read(int(batch.arrays["example"][row]))
            which = int(batch.arrays["picture"][row]) - source.first_picture(int(batch.arrays["example"][row]))
            picture = Path(sample.pictures[which].name)
            expected = processor(images=picture)["pixel_values"][0]
            assert np.array_equal(batch.arrays["pixel_values"][row], expected)
            texts = [caption.text for caption in sample.captions if caption.language == batch.languages[row]]
            encoded = processor.tokenizer(texts[0], padding="max_length", max_length=16, truncation=True)
            assert batch.arrays["input_ids"][row].tolist() == encoded["input_ids"]
            assert batch.arrays["attention_mask"][row].tolist() == encoded["attention_mask"]
            assert sample.name == batch.names[row]


def test_every_picture_and_language_of_a_sample_has_its_turn(emoji, processor):
    stream = ImageTextStream(emoji, processor, seed=0, max_length=8, decode_images=False)
    batches = drawn(stream, 100)
    languages = Counter(language for batch in batches for language in batch.languages)
    assert set(languages) == set(NAMES["cat"])
    assert all(0.7 < count / (1600 / 11) < 1.3 for count in languages.values())
    pictures = Counter(np.concatenate([batch.arrays["picture"] for batch in batches]).tolist())
    assert set(pictures) == set(range(stream.picture_count))


def test_languages_come_by_their_weights(emoji, processor):
    weights = {**dict.fromkeys(NAMES["cat"], 0.0), "zh": 3.0, "en": 1.0}
    stream = ImageTextStream(emoji, processor, seed=0, max_length=8, decode_images=False, languages=weights)
    languages = Counter(language for batch in drawn(stream, 100) for language in batch.languages)
    assert set(languages) == {"zh", "en"}
    assert 0.7 < languages["zh"] / 1600 < 0.8
    with pytest.raises(ValueError, match="fr: -1"):
        ImageTextStream(emoji, processor, seed=0, max_length=8, languages={"fr": -1})


def test_several_captions_of_a_language_share_its_weight(tmp_path, processor):
    captions = {"en": ["one", "two", "three"], "fr": "un", "de": "eins"}
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": "a", "captions": captions}))
    sources = open_sources([SourceSpec(path=str(tmp_path / "a.jsonl"))], "image_text")
    stream = ImageTextStream(sources, processor, seed=0, max_length=8, decode_images=False, languages={"de": 2})
    rows = [row for batch in drawn(stream, 100) for row in batch.arrays["input_ids"]]
    texts = Counter(processor.decode(row, skip_special_tokens=True) for row in rows)
    for text, share in (("one", 1 / 12), ("two", 1 / 12), ("three", 1 / 12), ("un", 1 / 4), ("eins", 1 / 2)):
        assert abs(texts[text] / 1600 - share) < 0.04


def test_captions_and_pictures_are_drawn_apart(tmp_path, processor):
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": ["a", "b"], "caption": ["one", "two"]}))
    sources = open_sources([SourceSpec(path=str(tmp_path / "a.jsonl"))], "image_text")
    stream = ImageTextStream(sources, processor, seed=0, max_length=8, decode_images=False)
    drawings = [stream.prepare(step, 0, 1) for step in range(400)]
    pairs = Counter((int(drawing["picture"]), tuple(drawing["input_ids"].tolist())) for drawing in drawings)
    assert len(pairs) == 4
    assert min(pairs.values()) > 70


def test_without_decoding_the_same_samples_come_and_no_picture_is_read(emoji, processor):
    whole = ImageTextStream(emoji, processor, seed=3, max_length=8)
    light = ImageTextStream(emoji, processor, seed=3, max_length=8, decode_images=False)
    for one, other in zip(drawn(whole, 3), drawn(light, 3), strict=True):
        assert set(one.arrays) - set(other.arrays) == {"pixel_values"}
        assert all(np.array_equal(array, one.arrays[name]) for name, array in other.arrays.items())


def test_augmentation_that_is_off_changes_nothing_and_on_differs_each_time(emoji, processor):
    plain, off, on = (
        ImageTextStream(emoji, processor, seed=3, max_length=8, augmentation=augmentation)
        for augmentation in (None, Augmentation(), Augmentation(crop_scale=(0.6, 0.9), background=1))
    )
    for one, other, changed in zip(drawn(plain, 2), drawn(off, 2), drawn(on, 2), strict=True):
        assert np.array_equal(one.arrays["pixel_values"], other.arrays["pixel_values"])
        assert np.array_equal(one.arrays["picture"], changed.arrays["picture"])
        difference = np.abs(one.arrays["pixel_values"] - changed.arrays["pixel_values"]).max(axis=(1, 2, 3))
        assert (difference > 0.1).all()


def test_augmentation_without_a_crop_keeps_the_processors_geometry(emoji, processor):
    stream = ImageTextStream(emoji, processor, seed=3, max_length=8, augmentation=Augmentation(flip=1))
    plain = ImageTextStream(emoji, processor, seed=3, max_length=8)
    for one, other in zip(drawn(stream, 1), drawn(plain, 1), strict=True):
        # resampling a mirrored picture rounds otherwise in places
        assert np.abs(one.arrays["pixel_values"][..., ::-1] - other.arrays["pixel_values"]).max() < 0.02


def test_a_random_crop_is_made_at_the_size_of_the_model(emoji, processor):
    larger = AltCLIPImageProcessor(size=40, crop_size=32)
    whole = Augmentation(crop_scale=(1, 1), crop_ratio=(1, 1))
    stream = ImageTextStream(
        emoji, AltCLIPProcessor(larger, processor.tokenizer), seed=0, max_length=8, augmentation=whole
    )
    drawing = stream.prepare(0, 0, 1)
    sample = emoji.sources[0].read(int(drawing["example"]))
    path = sample.pictures[int(drawing["picture"]) - emoji.sources[0].first_picture(int(drawing["example"]))].name
    resized = Image.open(path).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(drawing["pixel_values"], larger.normalize(np.asarray(resized)))


def test_every_step_changes_a_picture_otherwise(image_set, open_images, processor):
    stream = ImageTextStream(
        open_images(image_set(1)), processor, seed=0, max_length=8, augmentation=Augmentation(brightness=0.5)
    )
    assert len({stream.prepare(step, 0, 1)["pixel_values"].tobytes() for step in range(5)}) == 5


def test_augmented_pictures_stand_on_the_processors_background(tmp_path, processor):
    Image.new("RGBA", (20, 20), (1, 2, 3, 0)).save(tmp_path / "nothing.png")
    (tmp_path / "a.jsonl").write_text('{"image": "nothing.png", "caption": "nothing"}')
    sources = open_sources([SourceSpec(path=str(tmp_path / "a.jsonl"))], "image_text")
    images = AltCLIPImageProcessor(size=32, crop_size=32, background=(200, 10, 30))
    for augmentation in (None, Augmentation(flip=1), Augmentation(rotation=30)):
        colored = AltCLIPProcessor(images, processor.tokenizer)
        stream = ImageTextStream(sources, colored, seed=0, max_length=8, augmentation=augmentation)
        expected = images.normalize(np.full((32, 32, 3), (200, 10, 30), np.uint8))
        assert np.array_equal(stream.prepare(0, 0, 1)["pixel_values"], expected)


def test_pictures_of_varying_size_are_refused(emoji, processor):
    varying = AltCLIPProcessor(AltCLIPImageProcessor(do_center_crop=False), processor.tokenizer)
    with pytest.raises(ValueError, match="varying size"):
        ImageTextStream(emoji, varying, seed=0, max_length=8)
    ImageTextStream(emoji, varying, seed=0, max_length=8, decode_images=False)
    fixed = AltCLIPImageProcessor(do_center_crop=False, size={"height": 10, "width": 14})
    stream = ImageTextStream(emoji, AltCLIPProcessor(fixed, processor.tokenizer), seed=0, max_length=8)
    assert stream.prepare(0, 0, 1)["pixel_values"].shape == (3, 10, 14)


def test_walks_give_everything_once_and_in_order(emoji, processor):
    stream = ImageTextStream(emoji, processor, seed=0, max_length=16)
    source = emoji.sources[0]
    examples = list(stream.all_examples(7))
    assert np.concatenate([batch.arrays["example"] for batch in examples]).tolist() == list(range(len(source)))
    assert [len(batch.names) for batch in examples] == [7] * (len(source) // 7) + [len(source) % 7] * (
        len(source) % 7 > 0
    )
    assert [batch.step for batch in examples] == list(range(len(examples)))
    captions = list(stream.all_captions(50))
    assert sum(len(batch.names) for batch in captions) == 11 * len(source)
    assert all(len(batch.names) == 50 for batch in captions[:-1])
    assert set(captions[0].arrays) == {"input_ids", "attention_mask", "example"}
    assert captions[0].languages[:11] == list(NAMES["red_heart"])
    pictures = list(stream.all_pictures(5))
    assert set(pictures[0].arrays) == {"pixel_values", "picture", "example"}
    assert np.concatenate([batch.arrays["picture"] for batch in pictures]).tolist() == list(range(stream.picture_count))
    by_id = {
        i: p
        for batch in pictures
        for i, p in zip(batch.arrays["picture"].tolist(), batch.arrays["pixel_values"], strict=True)
    }
    for batch in drawn(stream, 2):
        for picture, pixels in zip(batch.arrays["picture"].tolist(), batch.arrays["pixel_values"], strict=True):
            assert np.array_equal(by_id[picture], pixels)


def test_ids_go_on_over_several_sources(tmp_path, emoji, processor):
    (tmp_path / "a.jsonl").write_text('{"image": ["a", "b"], "caption": "x"}\n{"image": "c", "caption": "y"}\n')
    first = open_sources([SourceSpec(path=str(tmp_path / "a.jsonl"))], "image_text")
    both = type(emoji)((*first.sources, *emoji.sources), (1.0, 1.0))
    stream = ImageTextStream(both, processor, seed=0, max_length=8, decode_images=False)
    walked = next(stream.all_pictures(1000)).arrays
    assert walked["picture"].tolist() == list(range(stream.picture_count))
    assert walked["example"][:5].tolist() == [0, 0, 1, 2, 2]


def test_a_stream_can_be_sent_to_another_process(emoji, pairs, processor):
    for stream in (
        ImageTextStream(emoji, processor, seed=0, max_length=8),
        TextPairStream(pairs, None, processor.tokenizer, seed=0, max_length=8),
    ):
        again = pickle.loads(pickle.dumps(stream))
        one, other = stream.prepare(1, 2, 8), again.prepare(1, 2, 8)
        assert all(np.array_equal(one[name], other[name]) for name in one)


# pairs -----------------------------------------------------------------------------------------------------------


def test_pairs_are_tokenized_for_both_sides(pairs, processor):
    tokenizer = processor.tokenizer
    stream = TextPairStream(pairs, tokenizer, tokenizer, seed=1, max_length=12, teacher_max_length=9)
    for batch in drawn(stream, 3):
        assert {name: (array.dtype.name, array.shape) for name, array in batch.arrays.items()} == {
            "example": ("int64", (16,)),
            "teacher_input_ids": ("int32", (16, 9)),
            "teacher_attention_mask": ("int32", (16, 9)),
            "input_ids": ("int32", (16, 12)),
            "attention_mask": ("int32", (16, 12)),
        }
        for row, example in enumerate(batch.arrays["example"].tolist()):
            pair = pairs.sources[0].read(example)
            for prefix, text, length in (("teacher_", pair.source, 9), ("", pair.target, 12)):
                encoded = tokenizer(text, padding="max_length", max_length=length, truncation=True)
                for name in ("input_ids", "attention_mask"):
                    assert batch.arrays[prefix + name][row].tolist() == encoded[name]
            assert (batch.names[row], batch.languages[row]) == (pair.name, pair.language)


def test_without_a_teacher_there_are_no_teacher_arrays(pairs, processor):
    stream = TextPairStream(pairs, None, processor.tokenizer, seed=1, max_length=12)
    assert set(drawn(stream, 1)[0].arrays) == {"example", "input_ids", "attention_mask"}
    with pytest.raises(ValueError, match="teacher_tokenizer"):
        stream.all_sources(4)


def test_all_pairs_and_all_sources_come_once_and_in_order(pairs, processor):
    stream = TextPairStream(pairs, processor.tokenizer, processor.tokenizer, seed=1, max_length=12)
    sources, examples = list(stream.all_sources(8)), list(stream.all_examples(8))
    for batches in (sources, examples):
        assert np.concatenate([batch.arrays["example"] for batch in batches]).tolist() == list(range(len(pairs)))
    assert set(sources[0].arrays) == {"example", "teacher_input_ids", "teacher_attention_mask"}
    for one, other in zip(sources, examples, strict=True):
        assert np.array_equal(one.arrays["teacher_input_ids"], other.arrays["teacher_input_ids"])


@pytest.mark.parametrize("kind", ["pictures", "pairs"])
def test_what_a_walk_leaves_out_is_fixed_when_it_begins(tmp_path, processor, png, kind):
    """Two processes mark what either has computed while both walk on; one has all the bad samples and is ahead."""
    count, names = 240, ("picture" if kind == "pictures" else "example")
    bad = range(1, count, 10)
    (tmp_path / "good.png").write_bytes(png(0))
    if kind == "pictures":
        records = [
            json.dumps({"image": "gone.png" if number in bad else "good.png", "caption": "x"})
            for number in range(count)
        ]
        (tmp_path / "set.jsonl").write_text("\n".join(records), encoding="utf-8")
        mixture = open_sources([SourceSpec(path=str(tmp_path / "set.jsonl"))], "image_text")
        walk = ImageTextStream(mixture, processor, seed=0, max_length=8).all_pictures
    else:
        lines = ["source\ttarget", *(f"x\t{'' if number in bad else 'y'}" for number in range(count))]
        (tmp_path / "set.tsv").write_text("\n".join(lines), encoding="utf-8")
        mixture = open_sources([SourceSpec(path=str(tmp_path / "set.tsv"))], "text_pairs")
        walk = TextPairStream(mixture, processor.tokenizer, processor.tokenizer, seed=0, max_length=8).all_sources
    there = np.zeros(count, bool)
    options = {"but": there, "bad_samples": BadSamples(max_bad_share=1.0), "threads": 1}
    walks = [walk(4, share=(process, 2), **options) for process in range(2)]
    while batches := [batch for own in walks if (batch := next(own, None)) is not None]:
        for batch in batches:
            there[batch.arrays[names]] = True
    assert np.flatnonzero(~there).tolist() == list(bad)


@pytest.mark.parametrize("settings", [{}, {"rotation": 20}, {"crop_scale": (0.5, 1), "flip": 0.5}])
@pytest.mark.parametrize("setting", [None, True])
def test_photographs_are_learned_from_upright(processor, photograph, store_turned, settings, setting):
    own = processor.image_processor.replace(apply_exif_orientation=setting)
    pixels = Pixels(own, Augmentation(**settings))

    def seen(orientation):
        return pixels("photo", Picture("photo", partial(store_turned, photograph, orientation)), generator_for(1, 2))

    for orientation in range(2, 9):
        np.testing.assert_array_equal(seen(orientation), seen(1))
