"""What is to be known before something is concluded from a run's images."""

MANY = 2  # times as many labels to choose by as to learn from


def choosing(learnt: int, held: int, classes: int) -> str:
    """Say that a choice would know far more labels than the method; nothing, if it would not.

    Source: Oliver et al. 2018, arXiv 1804.09170, section 4.6: validation sets of a realistic size hardly
    distinguish methods.

    Args:
        learnt: labelled images that the method learns from.
        held: labelled validation images.
        classes: number of classes.
    """
    if held <= MANY * learnt:
        return ""
    return (
        f"validation has {held:,} labelled images, for {learnt:,} labels to learn from: a choice by it knows more "
        f"labels than the method; data.validation_per_class={max(1, learnt // classes)} is realistic"
    )
