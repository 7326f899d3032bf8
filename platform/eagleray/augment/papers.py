"""Views that several papers share.

They are adapted to small images, up to 64 pixels.
"""

from dataclasses import replace

from eagleray.contracts.view import View

SMALL = 64  # pixels up to which an image counts as small


def simclr_view(image_size: int) -> View:
    """Return SimCLR's view (2002.05709, appendix A).

    Small images have no blur and half the jitter, as in the paper's study of CIFAR-10 (B.9).
    """
    large = image_size > SMALL
    return View(crop=(0.08, 1.0), flip=0.5, jitter=1.0 if large else 0.5, grayscale=0.2, blur=0.5 if large else 0.0)


def byol_views(image_size: int) -> tuple[View, View]:
    """Return BYOL's two views (2006.07733, table 6).

    They differ in blur and solarization. Small images are not blurred, and crops keep at least a fifth of them: smaller
    crops lose the object.
    """
    large = image_size > SMALL
    shared = View(
        crop=(0.08 if large else 0.2, 1.0), flip=0.5, grayscale=0.2, jitter=1.0, jitter_scale=(0.4, 0.4, 0.2, 0.1)
    )
    first = replace(shared, blur=1.0 if large else 0.0)
    second = replace(shared, blur=0.1 if large else 0.0, solarize=0.2)
    return first, second


def moco_view(image_size: int) -> View:
    """Return the view of MoCo v2 and SimSiam.

    MoCo v2: 2003.04297, section 3; SimSiam: 2011.10566, section 3. Small images are not blurred.
    """
    return View(
        crop=(0.2, 1.0),
        flip=0.5,
        jitter=1.0,
        jitter_scale=(0.4, 0.4, 0.4, 0.1),
        grayscale=0.2,
        blur=0.5 if image_size > SMALL else 0.0,
    )


def multi_crop(large: tuple[View, View], image_size: int, crops: int, size: int, split: float) -> tuple[View, ...]:
    """Return two large crops and some small ones.

    As SwAV (2006.09882, section 3.3) and DINO (2104.14294, section 3.1). Small crops cover at least a twentieth of the
    image; a tenth if the image is small, since less is only a few pixels.

    Args:
        large: the views of the large crops; small crops use the first of them, blurred in at most half the cases.
        image_size: side of the large crops in pixels.
        crops: number of small crops.
        size: side of the small crops in pixels.
        split: part of the image's area that large crops cover at least, and small ones at most.
    """
    first, second = (replace(view, crop=(split, 1.0)) for view in large)
    smallest = 0.05 if image_size > SMALL else 0.1
    small = replace(first, size=size, crop=(smallest, split), blur=min(first.blur, 0.5))
    return first, second, *[small] * crops
