"""The designs in which emoji are drawn: which picture of a package shows which concept, and under what licence."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from scripts.emoji.packages import Concept, Packages, bare
from scripts.emoji.slugs import FLAGS, FXEMOJI, RENAMED, UNFIT_FXEMOJI

Draw = Callable[[], Image.Image]


@dataclass(frozen=True)
class Design:
    """What a design is, and whom it is owed to."""

    package: str
    pictures: Callable[[Packages, str, Sequence[Concept], int], dict[str, Draw]]  # concept -> draws it
    licence: str
    link: str
    credit: str


def _noto(packages: Packages, package: str, concepts: Sequence[Concept], size: int) -> dict[str, Draw]:
    return _files(packages, package, "img/google/64/", concepts, size)


def _twemoji(packages: Packages, package: str, concepts: Sequence[Concept], size: int) -> dict[str, Draw]:
    return _files(packages, package, "img/twitter/64/", concepts, size)


def _fluent_3d(packages: Packages, package: str, concepts: Sequence[Concept], size: int) -> dict[str, Draw]:
    return _files(packages, package, "assets/", concepts, size)


def _fluent_flat(packages: Packages, package: str, concepts: Sequence[Concept], size: int) -> dict[str, Draw]:
    icons, names = packages.json(package, "icons.json", "chars.json")
    by_code = {bare(code): name for code, name in names.items()}
    # a mirrored icon has a name but no code points
    return _icons(icons, {c.code: [by_code.get(bare(c.code)) or _slug(c.name)] for c in concepts}, size)


def _by_slug(packages: Packages, package: str, concepts: Sequence[Concept], size: int) -> dict[str, Draw]:
    (icons,) = packages.json(package, "icons.json")
    return _icons(icons, {concept.code: list(_slugs(concept)) for concept in concepts}, size)


def _fxemoji(packages: Packages, package: str, concepts: Sequence[Concept], size: int) -> dict[str, Draw]:
    (icons,) = packages.json(package, "icons.json")
    return _icons(icons, {concept.code: list(_fxemoji_slugs(concept)) for concept in concepts}, size)


DESIGNS = {
    "noto": Design(
        "emoji-datasource-google@16.0.0",
        _noto,
        "Apache-2.0",
        "https://github.com/googlefonts/noto-emoji",
        "Noto Emoji, Copyright Google LLC; flags in the public domain",
    ),
    "fluent-flat": Design(
        "@iconify-json/fluent-emoji-flat@1.2.6",
        _fluent_flat,
        "MIT",
        "https://github.com/microsoft/fluentui-emoji",
        "Fluent Emoji (flat), Copyright Microsoft Corporation",
    ),
    "fluent-3d": Design(
        "@lobehub/fluent-emoji-3d@1.1.0",
        _fluent_3d,
        "MIT",
        "https://github.com/microsoft/fluentui-emoji",
        "Fluent Emoji (3D), Copyright Microsoft Corporation; packaged by LobeHub",
    ),
    "noto-v1": Design(
        "@iconify-json/noto-v1@1.2.5",
        _by_slug,
        "Apache-2.0",
        "https://github.com/googlefonts/noto-emoji",
        "Noto Emoji version 1, Copyright Google LLC",
    ),
    "emojione": Design(
        "@iconify-json/emojione@1.2.3",
        _by_slug,
        "CC-BY-4.0",
        "https://github.com/EmojiTwo/emojitwo",
        "EmojiOne 2 / EmojiTwo",
    ),
    "fxemoji": Design(
        "@iconify-json/fxemoji@1.2.2",
        _fxemoji,
        "CC-BY-4.0",  # the package says Apache-2.0, which the authors' LICENSE.md gives to the code only
        "https://github.com/mozilla/fxemoji",
        "FxEmojis, Copyright Mozilla Foundation",
    ),
    "twemoji": Design(
        "emoji-datasource-twitter@16.0.0",
        _twemoji,
        "CC-BY-4.0",
        "https://github.com/jdecked/twemoji",
        "Twemoji, Copyright Twitter, Inc. and other contributors",
    ),
}


def _files(packages: Packages, package: str, folder: str, concepts: Sequence[Concept], size: int) -> dict[str, Draw]:
    found = packages.members(package, lambda path: path.startswith(folder))
    by_code = {bare(path[len(folder) :].partition(".")[0]): data for path, data in found.items()}
    return {c.code: _scaled(by_code[bare(c.code)], size) for c in concepts if bare(c.code) in by_code}


def _scaled(data: bytes, size: int) -> Draw:
    def draw() -> Image.Image:
        with Image.open(io.BytesIO(data)) as image:
            # whole pixels are averaged where they can be: no ringing, and a quarter fewer bytes
            whole = image.width % size == 0 and image.height % size == 0
            filter = Image.Resampling.BOX if whole else Image.Resampling.LANCZOS
            return image.convert("RGBA").resize((size, size), filter)

    return draw


def _icons(icons: dict[str, Any], slugs: dict[str, list[str]], size: int) -> dict[str, Draw]:
    """Gives each concept the icon with the first of its slugs that exists, unless another has a better claim.

    The better claim is by an earlier slug, then by one that is no alias; of equal claims none is heard. An icon with
    a skin tone is never given.
    """
    claims: dict[tuple[str, bool], list[tuple[int, bool, str]]] = {}
    for code, wanted in slugs.items():
        for rank, slug in enumerate(wanted):
            icon, mirrored = _resolved(icons, slug)
            if icon is not None and "skin-tone" not in icon:
                claims.setdefault((icon, mirrored), []).append((rank, icon != slug, code))
                break
    drawn = {}
    for (icon, mirrored), claimants in claims.items():
        claimants.sort()
        if len(claimants) == 1 or claimants[0][:2] < claimants[1][:2]:
            drawn[claimants[0][2]] = _rastered(icons, icon, mirrored, size)
    return {code: drawn[code] for code in slugs if code in drawn}


def _resolved(icons: dict[str, Any], slug: str) -> tuple[str | None, bool]:
    mirrored = False
    while slug not in icons["icons"]:
        if slug not in icons.get("aliases", {}):
            return None, False
        alias = icons["aliases"][slug]
        mirrored ^= alias.get("hFlip", False)
        if alias.keys() - {"parent", "hFlip"}:
            raise ValueError(f"the icon {slug} is turned by {sorted(alias)}: only hFlip is known here.")
        slug = alias["parent"]
    return slug, mirrored


def _rastered(icons: dict[str, Any], name: str, mirrored: bool, size: int) -> Draw:
    icon = icons["icons"][name]
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        f' width="{size}" height="{size}" viewBox="{box}">{icon["body"]}</svg>'
    )

    def draw() -> Image.Image:
        import resvg_py

        data = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True))
        with Image.open(io.BytesIO(data)) as image:
            picture = image.convert("RGBA")
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else picture

    return draw


def _slugs(concept: Concept) -> Iterator[str]:
    """Yields what noto-v1 and emojione may call a concept: by older names, then by its present one."""
    if concept.name.startswith("flag: "):
        place = _slug(concept.name.removeprefix("flag: "))
        for name in (place, *FLAGS.get(place, ())):
            yield from (f"flag-for-{name}", f"flag-for-flag-{name}", f"flag-{name}")
    else:
        yield from RENAMED.get(concept.name, ())
        yield _slug(concept.name)


def _fxemoji_slugs(concept: Concept) -> Iterator[str]:
    """Yields what fxemoji may call a concept, which is often its name in Unicode 7, shortened."""
    if concept.name in FXEMOJI:
        yield FXEMOJI[concept.name]
    elif concept.name not in UNFIT_FXEMOJI:
        unicode_name = _slug(concept.unicode_name)
        yield unicode_name.replace("-", "")
        yield re.sub(r"\b(sign|symbol|face|with|and|of)\b|-", "", unicode_name)
        yield _slug(concept.name).replace("-", "")


def _slug(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub("[^a-z0-9]+", "-", plain.replace("&", "and").replace("'", "")).strip("-")
