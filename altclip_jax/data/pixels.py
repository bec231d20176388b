"""One picture to the numbers that the image tower takes."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Shaped

from altclip_jax.data.augment import Augmentation
from altclip_jax.data.samples import Picture, SampleError
from altclip_jax.processing.image import AltCLIPImageProcessor, ImageError
from altclip_jax.processing.image_files import load_picture

# What says of a file that it is bad; other errors say of the machine that it is, and stop the run.
_MISSING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


class Pixels:
    """Decodes pictures as the image processor does, after an augmentation if there is chance."""

    def __init__(self, processor: AltCLIPImageProcessor, augmentation: Augmentation):
        """Checks that all pictures will have one size.

        Raises:
            ValueError: they will not.
        """
        if processor.output_size is None:
            raise ValueError(
                "The image processor gives pictures of varying size, which make no batch: set do_center_crop, or a"
                " size of height and width."
            )
        height, width = processor.output_size
        self._size = width, height
        self._processor, self._augmentation = processor, augmentation

    @property
    def table(self) -> Float[np.ndarray, "3 256"]:
        """What the levels of each channel are as pixel values, for who looks them up on the devices."""
        levels = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
        return self._processor.normalize(levels)[:, :, 0]

    def __call__(
        self, name: str, picture: Picture, generator: np.random.Generator | None
    ) -> Float[np.ndarray, "3 height width"]:
        """Returns pixel values, float32; see `cropped`."""
        return self._processor.normalize(self.cropped(name, picture, generator))

    def cropped(
        self, name: str, picture: Picture, generator: np.random.Generator | None = None
    ) -> Shaped[np.ndarray, "height width 3"]:
        """Returns the picture in its final size, uint8, not yet normalised.

        Args:
            name: What errors call the sample.
            picture: Of that sample.
            generator: Where the chance of the augmentation comes from; None: none is done.

        Raises:
            SampleError: the picture cannot be used.
            OSError: the machine fails, not the picture.
        """
        called = "the picture" if picture.name == name else f"the picture {picture.name}"
        try:
            data = picture.read()
        except SampleError:
            raise
        except _MISSING as error:
            raise SampleError(name, f"{called} cannot be read ({error.strerror})") from None
        except ValueError as error:  # a path with a NUL
            raise SampleError(name, f"{called} is no path ({error})") from None
        try:
            return self._augment(data, called, generator) if generator else self._plain(data, called)
        except ImageError as error:
            raise SampleError(name, str(error)) from None

    def _plain(self, data: bytes, called: str) -> np.ndarray:
        return self._processor.resize_and_crop(data, called)

    def _augment(self, data: bytes, called: str, generator: np.random.Generator) -> np.ndarray:
        processor = self._processor
        image = load_picture(
            data, called, max_pixels=processor.max_pixels, to_rgb=False, upright=processor.apply_exif_orientation
        )
        assert not isinstance(image, np.ndarray)
        try:
            changed = self._augmentation(image, generator, self._size, processor.background)
        except (ValueError, OSError) as error:
            raise ImageError(f"{called} cannot be changed ({error})") from error
        if self._augmentation.crop_scale is not None:
            return np.asarray(changed)
        return processor.replace(apply_exif_orientation=False).resize_and_crop(changed, called)
