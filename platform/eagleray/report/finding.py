"""The finding of a sweep in one sentence.

It claims no more than the numbers show.
"""

from collections.abc import Sequence

from eagleray.report.analysis import Analysis, Compared
from eagleray.report.effects import Effect, Level
from eagleray.report.numbers import number, p_text, with_margin
from eagleray.report.variance import SIGNIFICANT

ROUNDING = 1e-9  # relative; means that differ by less are equal


def finding(analysis: Analysis) -> str:
    """Return the finding of a sweep in one sentence.

    A second one says what its metric is worth, if that has a caution.
    """
    if not analysis.tried:
        others = sorted({name for row in analysis.rows for name in row.metrics})
        measured = f"; they measured {', '.join(others)}" if others else ""
        return f"no trial measured {analysis.metric}{measured}."
    effects = analysis.effects.each
    parts = [_at_epoch(analysis) + _what_matters(effects, analysis) if effects else _no_choice(analysis)]
    parts += [_against_floors(analysis)]
    metric = analysis.table.get(analysis.metric)
    caution = f" Mind that {analysis.metric} is no accuracy: {metric.caution}." if metric and metric.caution else ""
    return f"{'; '.join(filter(None, parts))}.{caution}"


def _at_epoch(analysis: Analysis) -> str:
    epoch = analysis.equal.epoch
    return "" if epoch is None else f"at epoch {epoch}, the last that all runs reached, "


def _no_choice(analysis: Analysis) -> str:
    best, *others = analysis.tried
    if analysis.equal.note:
        return (
            f"no key is said to matter, because {analysis.equal.note}; the best has {analysis.metric} {best.measured}"
        )
    if not others:
        return f"only one point was measured, with {analysis.metric} {best.measured}"
    return f"all {1 + len(others)} points have the same settings; the best has {analysis.metric} {best.measured}"


def _what_matters(effects: Sequence[Effect], analysis: Analysis) -> str:
    first, *rest = effects
    best, worst = _ends(first, analysis)
    together = analysis.effects.interaction
    also = f"; the keys act together ({p_text(together)}, F test of lack of fit)" if together is not None else ""
    if _equal(best.mean, worst.mean):
        is_known = len({seed for row in analysis.tried for seed in row.seeds}) > 1
        none = "no key makes a difference" if rest else f"{first.key} makes no difference"
        same = f"{analysis.metric} is {number(best.mean)} at every value"
        unknown = f"{same}{'' if rest else f' of {first.key}'}, but with one seed that may be chance (set seeds=3)"
        return f"{none}: {same}{also}" if is_known else unknown
    ends = (
        f"{analysis.metric} is {with_margin(best.mean, best.margin)} {best.place} "
        f"and {with_margin(worst.mean, worst.margin)} {worst.place}"
    )
    if first.p_value is None:
        return f"{first.key}: {ends}, but with one run each a difference may be noise (set seeds=3)"
    tested = f"{p_text(first.p_value)} ({analysis.effects.test})"
    if not first.is_significant:
        none = f"no key has a significant effect; the smallest p-value is that of {first.key}"
        return f"{none if rest else f'{first.key} has no significant effect'}: {ends}, {tested}{also}"
    counts = f"(from {best.runs} and {worst.runs} runs)"
    then = "".join(
        f", and so does {each.key} (best {_ends(each, analysis)[0].place}, {p_text(each.p_value)})"
        for each in rest
        if each.p_value is not None and each.is_significant
    )
    return f"{first.key} matters: {ends} {counts}, {tested}{then}{also}"


def _against_floors(analysis: Analysis) -> str:
    """Compare the best point with each floor.

    With one seed nothing is known of the noise, so a difference is stated and not judged.
    """
    tested: dict[str, list[str]] = {}
    stated = []
    for each in analysis.differences:
        name = f"{each.floor.name} ({each.floor.measured}"
        if each.test is not None:
            text = f"{name}; by {number(abs(each.gain))} ± {number(each.test.margin)}, {p_text(each.test.p_value)})"
            tested.setdefault(_judged(each, analysis), []).append(text)
        elif _equal(each.gain, 0, each.floor.mean or 0):
            stated.append(f"equal to {name})")
        else:
            stated.append(f"{number(abs(each.gain))} {'above' if each.gain > 0 else 'below'} {name})")
    parts = [f"{words} {' and '.join(names)}" for words, names in tested.items()]
    how = f", t test paired by seed{_corrected(analysis.comparisons)}" if parts else ""
    said = [f"{', '.join(parts)}{how}"] if parts else []
    said += (
        [f"{' and '.join(stated)}; without a second seed there is no interval, so this may be noise"] if stated else []
    )
    return f"the best trial ({analysis.winner.measured}) is {'; it is '.join(said)}" if said and analysis.winner else ""


def _judged(compared: Compared, analysis: Analysis) -> str:
    if compared.test is None or compared.test.p_value >= SIGNIFICANT:
        return "not significantly different from"
    return "better than" if (compared.gain > 0) is (analysis.mode == "max") else "worse than"


def _corrected(comparisons: int) -> str:
    return f", Bonferroni-corrected for {comparisons} comparisons" if comparisons > 1 else ""


def _ends(effect: Effect, analysis: Analysis) -> tuple[Level, Level]:
    ordered = sorted(effect.levels, key=lambda level: level.mean, reverse=analysis.mode == "max")
    return ordered[0], ordered[-1]


def _equal(one: float, other: float, scale: float = 0.0) -> bool:
    return abs(one - other) <= ROUNDING * max(abs(one), abs(other), abs(scale))
