"""Keywords of two languages are paired by the emoji that have them, and only where these leave no doubt."""

import pytest


@pytest.fixture(scope="module")
def aligned_keywords(program):
    return program("emoji.keywords").aligned_keywords


def concept(english, french):
    """Returns captions with names that no keyword is to be paired with."""
    return {"en": ["a name", *english], "fr": ["un nom", *french]}


def test_keywords_on_the_same_emoji_are_a_pair_and_synonyms_lead_to_one(aligned_keywords):
    concepts = [
        concept(["animal", "pet"], ["animal", "bête"]),
        concept(["animal"], ["bête", "animal"]),
        concept(["animal", "fruit"], ["animal", "bête", "fruits"]),
        concept(["fruit"], ["fruits"]),
    ]
    assert sorted(aligned_keywords(concepts)) == [
        ("animal", "animal", "fr"),
        ("animal", "bête", "fr"),
        ("fruit", "fruits", "fr"),
    ]


def test_what_is_on_one_emoji_or_could_be_two_words_or_goes_with_none_is_left_out(aligned_keywords):
    once = [concept(["pet"], ["domestique"])]
    twins = [concept(["hot", "spicy"], ["piquant"]), concept(["spicy", "hot"], ["piquant"])]
    # three of twelve and three emoji: 2 * 3 / 15 is less than a half
    loose = [concept(["face"], ["visage"] if place < 3 else []) for place in range(12)]
    assert aligned_keywords([*once, *twins, *loose]) == []


def test_each_language_that_is_there_is_paired_with_english(aligned_keywords):
    concepts = [{"en": ["n", "dog"], "fr": ["n", "chien"], "zh": ["n", "狗"]}, {"en": ["m", "dog"], "zh": ["m", "狗"]}]
    assert aligned_keywords(concepts) == [("dog", "狗", "zh")]
