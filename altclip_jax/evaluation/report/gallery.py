"""Small pictures in a page, each once however often it is shown."""

from __future__ import annotations

import base64
import io

from PIL import Image

from altclip_jax.data.samples import Picture
from altclip_jax.evaluation.report.markup import Markup, join, tag
from altclip_jax.processing.image_files import load_picture

_SIDE = 128
_SMALL = 64  # pixels a side up to which no detail may be lost
_MOST = 178_956_970


class Gallery:
    """Collects thumbnails, and defines them at the end of the page."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._images: list[Markup] = []

    def show(self, picture: Picture, caption: str = "", kind: str = "picture") -> Markup:
        """Returns a picture with a line below it.

        Raises:
            ImageError: it cannot be read.
        """
        key = str(picture.file or picture.name)
        if key not in self._places:
            self._places[key] = len(self._images)
            self._images.append(_defined(picture, f"p{len(self._images)}"))
        use = tag("use", href=f"#p{self._places[key]}")
        drawn = tag("svg", tag("title", picture.name), use, viewBox="0 0 1 1", role="img")
        return tag("figure", drawn, tag("figcaption", caption) if caption else None, class_=kind)

    def definitions(self) -> Markup:
        """Returns the element in which all pictures stand."""
        return tag("svg", tag("defs", self._images), width=0, height=0, style="position:absolute", aria_hidden="true")


def _defined(picture: Picture, name: str) -> Markup:
    image = load_picture(picture.read(), picture.name, max_pixels=_MOST, background=(255, 255, 255), upright=True)
    assert isinstance(image, Image.Image)
    image.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    small = max(image.size) <= _SMALL
    image.save(file, "png" if small else "jpeg", **({} if small else {"quality": 85}))
    data = base64.b64encode(file.getvalue()).decode()
    uri = f"data:image/{'png' if small else 'jpeg'};base64,{data}"
    return join(tag("image", id=name, href=uri, width=1, height=1))
