"""Views that several papers share. Up to 64 pixels they are changed as small images need it."""

from dataclasses import replace

from eagleray.augment.view import View

SMALL = 64  # pixels up to which an image counts as small


def simclr_view(image_size: int) -> View:
    """SimCLR's view (2002.05709, appendix A); of small images as in its study of CIFAR-10 (B.9).

    There it has no blur and half the jitter.
    """
    large = image_size > SMALL
    return View(crop=(0.08, 1.0), flip=0.5, jitter=1.0 if large else 0.5, grayscale=0.2, blur=0.5 if large else 0.0)


def byol_views(image_size: int) -> tuple[View, View]:
    """BYOL's two views, which differ in blur and solarization (2006.07733, table 6).

    Small images are not blurred, and crops keep a fifth of them at least: less removes the object.
    """
    large = image_size > SMALL
    shared = View(
        crop=(0.08 if large else 0.2, 1.0), flip=0.5, grayscale=0.2, jitter=1.0, jitter_scale=(0.4, 0.4, 0.2, 0.1)
    )
    first = replace(shared, blur=1.0 if large else 0.0)
    second = replace(shared, blur=0.1 if large else 0.0, solarize=0.2)
    return first, second


def moco_view(image_size: int) -> View:
    """The view of MoCo v2 (2003.04297, section 3) and of SimSiam (2011.10566, section 3); small images get no blur."""
    return View(
        crop=(0.2, 1.0),
        flip=0.5,
        jitter=1.0,
        jitter_scale=(0.4, 0.4, 0.4, 0.1),
        grayscale=0.2,
        blur=0.5 if image_size > SMALL else 0.0,
    )
