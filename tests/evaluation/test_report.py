"""Reports: whole pages that need nothing else, say the same numbers, and run nothing that stands in the data."""

import base64
import io
import json
import re
from functools import partial
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from altclip_jax import AltCLIP, cli
from altclip_jax.assets import PICTURES
from altclip_jax.data.bad_samples import BadSamples
from altclip_jax.data.samples import Picture
from altclip_jax.evaluation.classes import Classes
from altclip_jax.evaluation.labelled import Labelled
from altclip_jax.evaluation.report.charts import Bar, heat_map, nested_bars
from altclip_jax.evaluation.report.gallery import Gallery
from altclip_jax.evaluation.report.markup import tag
from altclip_jax.evaluation.report.reports import retrieval_report, zero_shot_report
from altclip_jax.evaluation.retrieval_run import evaluate_retrieval, open_collection
from altclip_jax.evaluation.zero_shot_run import evaluate_zero_shot
from altclip_jax.sweep import embed_pictures

NAMES = json.loads((PICTURES / "names.json").read_text(encoding="utf-8"))
KEYS = sorted(NAMES)
HOSTILE = '<script>alert("x")</script> & "more"'


class Page(HTMLParser):
    """Checks that elements end where they should, and keeps what they hold."""

    def __init__(self, data):
        super().__init__()
        self.open, self.elements, self.rows, self.text = [], [], [], ""
        self.feed(data.decode())
        self.close()
        assert self.open == []

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name == "tr":
            self.rows.append([])
        if name in ("td", "th"):
            self.rows[-1].append("")
        if name not in ("meta", "img", "br"):
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def values(self, attribute):
        return [values[attribute] for _, values in self.elements if attribute in values]


@pytest.fixture(scope="module")
def clip():
    return AltCLIP.from_pretrained()


@pytest.fixture(scope="module")
def retrieved(clip, tmp_path_factory):
    """Twelve pictures in two languages, of which one caption is hostile."""
    path = tmp_path_factory.mktemp("report") / "set.jsonl"
    lines = [
        {"image": str(PICTURES / f"{key}_noto.png"), "captions": {lang: NAMES[key][lang] for lang in ("en", "ar")}}
        for key in KEYS[:12]
    ]
    lines[3]["captions"]["en"] = HOSTILE
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    bad = BadSamples()
    return evaluate_retrieval(clip, open_collection([str(path)], None, bad), bad, batch_size=16)


@pytest.fixture(scope="module")
def classified(clip):
    """Twelve pictures of six classes, of which the first two have each other's label."""
    classes = Classes(tuple(KEYS[:6]), {lang: tuple((NAMES[key][lang],) for key in KEYS[:6]) for lang in ("ja", "en")})
    files = [(key, PICTURES / f"{key}_{design}.png") for key in KEYS[:6] for design in ("noto", "fxemoji")]
    labelled = [Labelled(Picture(str(file), file.read_bytes, file), key) for key, file in files]
    labelled[0], labelled[2] = (labelled[0]._replace(label=KEYS[1]), labelled[2]._replace(label=KEYS[0]))
    return evaluate_zero_shot(clip, labelled, classes, {}, BadSamples(), batch_size=16)


@pytest.fixture(params=["retrieval", "zero-shot"])
def page(request):
    if request.param == "retrieval":
        return Page(retrieval_report(request.getfixturevalue("retrieved"), "some data"))
    return Page(zero_shot_report(request.getfixturevalue("classified"), "some data"))


def test_a_page_needs_nothing_beside_itself(page):
    assert not {name for name, _ in page.elements} & {"script", "link", "iframe", "object"}
    references = page.values("href") + page.values("src")
    assert references
    assert all(reference.startswith(("#p", "data:image/")) for reference in references)
    assert "url(" not in page.text


def test_each_picture_stands_in_a_page_once_and_is_one(page):
    defined = [values for name, values in page.elements if name == "image"]
    assert len({values["href"] for values in defined}) == len(defined)
    shown = {values["href"] for name, values in page.elements if name == "use"}
    assert shown == {f"#{values['id']}" for values in defined}
    for values in defined:
        data = base64.b64decode(values["href"].partition(",")[2])
        assert max(Image.open(io.BytesIO(data)).size) <= 128


def test_what_stands_in_the_data_is_text(retrieved):
    data = retrieval_report(retrieved, HOSTILE)
    assert b"<script" not in data
    assert Page(data).text.count(HOSTILE) >= 2
    assert tag("p", HOSTILE, title=HOSTILE) == (
        '<p title="&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp; &quot;more&quot;">'
        '&lt;script&gt;alert("x")&lt;/script&gt; &amp; "more"</p>'
    )


def test_the_table_has_the_numbers_of_the_summary(retrieved):
    rows = {row[0]: row[1:] for row in Page(retrieval_report(retrieved, "x")).rows}
    summary = retrieved.summary()
    assert list(rows) == ["language", "en", "ar", "mean", "guessing"]
    for language, numbers in summary["languages"].items():
        values = [*numbers["text_to_image"].values(), *numbers["image_to_text"].values(), numbers["mean_recall"]]
        assert rows[language] == ["12", "12", *(f"{100 * value:.1f}" for value in values)]


def test_examples_are_the_best_and_the_worst_queries(retrieved):
    text = Page(retrieval_report(retrieved, "x")).text
    recall = retrieved.found["en"]
    assert f"place {recall.text_ranks.max() + 1} of 12" in text
    first = [place for place in range(12) if recall.text_ranks[place] == 0]
    best = max(first, key=lambda place: recall.text_scores[place])
    title = "text to picture, best"
    caption = retrieved.collection.captions[recall.texts[best]].text
    assert text[text.index(title) + len(title) :].startswith(caption)


def test_the_surest_mistake_comes_first(classified):
    result = classified.found["en"].result
    wrong = np.flatnonzero(result.ranks > 0)
    surest = wrong[np.argmax(result.confidence[wrong])]
    text = Page(zero_shot_report(classified, "x")).text
    name = classified.name("en", int(result.predicted[surest]))
    first = text.rpartition("wrong, and sure")[2].split("taken for ")[1]
    assert first.startswith(f"{name}, {100 * result.confidence[surest]:.1f} % sure")


def test_bars_are_as_long_as_their_values():
    chart = nested_bars("t", ["R@1", "R@5"], [Bar("en", [0.25, 0.5], [0.1, 0.2])])
    widths = [float(width) for width in re.findall(r'<rect x="[^"]+" y="[^"]+" width="([^"]+)" height="16"', chart)]
    assert widths == [180, 90]


def test_a_heat_map_has_a_cell_for_each_pair():
    chart = heat_map("t", ["a", "b" * 40], ["c", "d", "e"], np.array([[1, 0, 0], [0.25, 0.004, 0.5]]))
    assert chart.count('class="cell"') == 6
    assert re.findall(r'class="(?:in|on)">(\d+)<', chart) == ["100", "25", "50"]
    assert f"{'b' * 21}…" in chart


def test_the_command_writes_a_report(capsys, tmp_path):
    lines = [f"{PICTURES / f'{key}_noto.png'},{NAMES[key]['en']}" for key in KEYS[:12]]
    (tmp_path / "set.csv").write_text("\n".join(["image,caption", *lines]))
    report = tmp_path / "reports" / "a.html"
    arguments = ["evaluate", "retrieval", str(tmp_path / "set.csv"), "--html", str(report), "--batch-size", "16"]
    assert cli.main([*arguments]) == 0
    assert capsys.readouterr().out.endswith(f"report: {report}\n")
    assert Page(report.read_bytes()).rows[1][0] == "any"
    assert [path.name for path in report.parent.iterdir()] == ["a.html"]


def test_photographs_stand_upright_in_a_report(photograph, store_turned):
    galleries = [Gallery(), Gallery()]
    for gallery, orientation in zip(galleries, (1, 6), strict=True):
        gallery.show(Picture("photo", partial(store_turned, photograph, orientation)))
    assert str(galleries[0].definitions()) == str(galleries[1].definitions())


def test_photographs_are_measured_upright(photograph, store_turned, tmp_path):
    clip = AltCLIP.from_pretrained()
    pictures = [Picture(str(way), partial(store_turned, photograph, way)) for way in range(1, 9)]
    rows, _ = embed_pictures(clip, pictures, BadSamples(tmp_path / "bad.jsonl", max_bad_share=0))
    np.testing.assert_allclose(rows, np.repeat(clip.encode_images(photograph), 8, axis=0), rtol=0, atol=2e-6)
