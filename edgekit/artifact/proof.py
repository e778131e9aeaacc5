"""What rows can prove of a share or of a metric: the statistical gates, one policy for all of them.

``pass``: within the limit, and a loss of twice the limit would have been seen with 95 % on these rows. ``unproven``:
within the limit, on rows that are too few for that. ``fail``: measured beyond the limit; the message says whether these
rows are enough to be sure of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgekit.devices.statistics import SURE, rows_to_see, share_below, unseen, wilson, would_be_seen
from edgekit.types import Gate, Parity, Verdict

NOT_DATA = ("random", "golden")
"""Samples of which nothing statistical is claimed."""
NOT_UNSEEN = (*NOT_DATA, "calibration")
"""Samples that are not data which quantization has not seen: the verdict says so."""
_EQUAL = 1e-9
"""What two shares may differ by that are the same on paper: 0.91 - 0.90 is not 0.01 in binary."""
_MOST_TIMES = 30.0
"""Beyond 900 times the rows nobody is helped by a number."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share (0 to 1) of ``rows`` independent ``what``."""

    value: float
    rows: int
    what: str

    @property
    def lost(self) -> int:
        """How many of the rows do not agree; of rows that agree in part, so many as come to as much."""
        return math.ceil((1.0 - self.value) * self.rows - _EQUAL * self.rows)

    def __str__(self) -> str:
        return self.beside(None)

    def beside(self, limit: float | None) -> str:
        """For people, with digits enough to tell it from ``limit``."""
        agreeing = self.value * self.rows
        if abs(agreeing - round(agreeing)) > 1e-6 * self.rows:
            return f"{percent(self.value, limit)} of the {self.what} agree"
        return f"{agreeing:.0f} of {self.rows} {self.what} ({percent(self.value, limit)}) agree"


def percent(share: float, beside: float | None = None) -> str:
    """A share for people: ``99.8 %``; ``100 %`` only where nothing is missing, ``0 %`` only where nothing is there.

    ``beside``: what it is held against, from which it differs as written where it does.
    """
    value = 100.0 * share
    other = value if beside is None else 100.0 * beside
    for digits in range(3, _DIGITS):
        text = f"{value:.{digits}g}"
        told = other == value or text != f"{other:.{digits}g}"
        if told and (float(text) == 100.0) == (share >= 1.0) and (float(text) == 0.0) == (share <= 0.0):
            return f"{text} %"
    return f"{value:g} %"


def apart(value: float, limit: float, *, digits: int = 4) -> tuple[str, str]:
    """Both as text, with digits enough that they differ where they do: 0.9998 is not at least 0.99999."""
    for more in range(digits, _DIGITS):
        texts = f"{value:.{more}g}", f"{limit:.{more}g}"
        rounded_up = any(0 < x < 1 and text == "1" for x, text in zip((value, limit), texts, strict=True))
        if not rounded_up and (value == limit or texts[0] != texts[1]):
            return texts
    return repr(value), repr(limit)


_DIGITS = 15
"""Beyond it two numbers are the same to everybody."""


def inputs(parity: Parity) -> str:
    """What parity was measured on, for messages: ``8 random inputs``."""
    plural = "" if parity.samples == 1 else "s"
    nouns = {"random": "random input", "golden": "golden vector", "calibration": "calibration sample"}
    return f"{parity.samples} {nouns.get(parity.data, 'sample')}{plural}"


def shown(name: str, share: Share, limit: float, where: str, *, judged: bool) -> Gate:
    """An agreement that proves nothing; of real inputs (``judged``) it fails where it is surely too low."""
    message = f"{share.beside(limit)} on {where}"
    if judged and share_below(share.rows - share.lost, share.rows, limit) < SURE:
        message += f", at least {percent(limit, share.value)} wanted"
        return Gate(name=name, verdict=Verdict.FAIL, limit=limit, value=share.value, message=message)
    message += ": too few to judge" if judged else ": shown, not judged; --eval DATA judges it"
    return Gate(name=name, verdict=Verdict.SHOWN, value=share.value, message=message)


def exact(name: str, share: Share, limit: float, where: str) -> Gate:
    """A share of what was run, without a claim about anything else."""
    verdict = Verdict.PASS if share.value >= limit - _EQUAL else Verdict.FAIL
    message = f"{share.beside(limit)} on {where}, at least {percent(limit, share.value)} wanted"
    return Gate(name=name, verdict=verdict, limit=limit, value=share.value, message=message)


def agreement(name: str, share: Share, limit: float) -> Gate:
    """A share against the least that is wanted."""
    message = f"{share.beside(limit)}, at least {percent(limit, share.value)} wanted"
    allowed = 1.0 - limit
    if share.value < limit - _EQUAL:
        agreeing = share.rows - share.lost
        message += f"; the true share is {_shares(agreeing, share.rows)}"
        if share_below(agreeing, share.rows, limit) >= SURE:
            message += f": measured beyond the limit, on too few {share.what} to be sure"
        return Gate(name=name, verdict=Verdict.FAIL, limit=limit, value=share.value, message=message)
    if would_be_seen(share.lost, share.rows, 2 * allowed + _EQUAL):
        return Gate(name=name, verdict=Verdict.PASS, limit=limit, value=share.value, message=message)
    message, enough = _unproven(
        message, share.rows, share.what, allowed, rows_to_see(1.0 - share.value, 2 * allowed)
    )
    return Gate(
        name=name,
        verdict=Verdict.UNPROVEN,
        limit=limit,
        value=share.value,
        message=message,
        enough=enough,
    )


def _shares(agreeing: int, rows: int) -> str:
    interval = wilson(agreeing, rows)
    return f"{percent(interval.low)} to {percent(interval.high)} ({interval.method}, 90 %)"


def _unproven(text: str, rows: int, what: str, allowed: float, enough: int | None) -> tuple[str, int | None]:
    text += f"; unproven: a loss of {percent(2 * allowed)} could go unseen on {rows} {what}"
    if allowed <= 0:
        return f"{text}, and no number of them proves that nothing at all is lost", None
    return (text if enough is None else f"{text}, about {enough:,} would do"), enough


def drop(name: str, parity: Parity, limit: float, *, given: bool = True) -> Gate:
    """The loss of the task's metric against the most that may be lost; ``given``: by the user, in the metric's unit.

    A row's limit is a share. Of a metric in a unit of its own it is that share of the source's value: less is a pass,
    more is unproven, as nobody has said what it is worth, and a loss as large as the value itself is a failure.
    """
    unit = not given and _in_its_own_unit(parity)
    if unit:
        limit *= abs(parity.reference_metric or 0.0)
    text = f"{_measured(parity)}, at most {limit:.4g} lost wanted{_on(parity)}"
    if parity.metric_drop is None:
        message = f"{text}; the artifact's outputs are not finite"
        return Gate(name=name, verdict=Verdict.FAIL, limit=limit, message=message)
    loss, interval = parity.metric_drop, parity.drop_interval
    if interval is not None:
        text += f"; loss {interval[0]:.4g} to {interval[1]:.4g} ({parity.drop_method}, 90 %)"
    if unit and parity.reference_metric:
        text += f"; that is {loss / abs(parity.reference_metric):.1%} of the source's"
    if (better := better_than_source(parity)) != "":
        text += f"; {better}"
    if (chance := source_at_chance(parity)) != "":
        text += f"; {chance}"
    if unit and limit < loss < abs(parity.reference_metric or math.inf):
        text += f"; unproven: {parity.metric_name} is in a unit of its own: --max-drop says how much of it may be lost"
        return Gate(name=name, verdict=Verdict.UNPROVEN, limit=limit, value=loss, message=text)
    slack = 0.0 if unit else _EQUAL  # of a unit of its own nobody knows what is next to nothing
    if loss > limit + slack:
        if interval is None or interval[0] <= limit:
            text += ": measured beyond the limit, on too few rows to be sure" + _rows_for_certainty(
                parity, limit
            )
        return Gate(name=name, verdict=Verdict.FAIL, limit=limit, value=loss, message=text)
    rows = parity.metric_rows or parity.rows
    if interval is None:
        text += "; unproven: of parts of the samples the metric is not to be had, or too slow: no interval is known"
        return Gate(name=name, verdict=Verdict.UNPROVEN, limit=limit, value=loss, message=text)
    if better or chance or (floor := source_at_zero(parity)):
        text += "" if better or chance else f"; {floor}"
        text += "; unproven: a metric that does not fit the model would see no loss"
        return Gate(name=name, verdict=Verdict.UNPROVEN, limit=limit, value=loss, message=text)
    worst = max(interval[1], unseen(rows) * parity.row_loss)
    if limit > 0 and worst <= 2 * limit + slack:
        return Gate(name=name, verdict=Verdict.PASS, limit=limit, value=loss, message=text)
    text += f"; unproven: a loss of {2 * limit:.4g} could go unseen on {rows} rows"
    enough = None
    if limit <= 0:
        text += ", and no number of them proves that nothing at all is lost"
    elif (enough := _enough(parity, limit, rows)) is not None:
        text += f", about {enough:,} would do"
    return Gate(name=name, verdict=Verdict.UNPROVEN, limit=limit, value=loss, message=text, enough=enough)


_WIDER = 2.576 / 1.645
"""From a 90 % interval to one of 99 %, by the normal distribution."""


def better_than_source(parity: Parity) -> str:
    """What is to be said of an artifact that beats its source by more than chance; empty of any other."""
    if parity.drop_interval is None or parity.metric_drop is None:
        return ""
    # One build in twenty beats its source by the gates' own interval; this is said of one in two hundred.
    margin = (parity.drop_interval[1] - parity.metric_drop) * _WIDER
    if parity.metric_drop + margin >= -_EQUAL:
        return ""
    way = "higher" if parity.higher_is_better else "lower"
    return (
        f"the artifact's {parity.metric_name} is better than its source's by more than chance: look whether {way} "
        "is better in this metric, and whether the labels fit the model"
    )


def source_at_chance(parity: Parity) -> str:
    """What is to be said of a source that is no better than naming one class always; empty of any other, and where so
    few rows could not tell one that is half way between that and perfect."""
    guess, rows = parity.guess, parity.metric_rows
    if guess is None or parity.reference_metric is None or not rows or guess >= 1.0:
        return ""
    right, half_way = round(parity.reference_metric * rows), math.ceil((1.0 + guess) / 2 * rows)
    if _above(right, rows, guess) or not _above(half_way, rows, guess):
        return ""
    return (
        f"the source itself scores {percent(parity.reference_metric)}, naming one class always {percent(guess)}: look "
        "whether these labels, and how the inputs are made, are the model's own"
    )


def source_at_zero(parity: Parity) -> str:
    """What is to be said of a source that scores nothing where higher is better: no artifact could lose any of it."""
    if parity.reference_metric != 0.0 or not parity.higher_is_better:
        return ""
    return "the source itself scores 0, of which nothing can be lost: look whether labels and metric fit the model"


def _in_its_own_unit(parity: Parity) -> bool:
    """An error, or a score beyond 0 to 1: what a share of one would be of it nobody knows."""
    return not parity.higher_is_better or not 0.0 <= (parity.reference_metric or 0.0) <= 1.0


def _above(successes: int, trials: int, share: float) -> bool:
    """Whether the true share is surely above ``share``."""
    return share_below(trials - successes, trials, 1.0 - share) < SURE


def _measured(parity: Parity) -> str:
    recipe = "" if parity.recipe_metric is None else f"{parity.recipe_metric:.4g} by the recipe → "
    after = "nothing" if parity.metric is None else f"{parity.metric:.4g}"
    return f"{parity.metric_name} {parity.reference_metric:.4g} → {recipe}{after}"


def _on(parity: Parity) -> str:
    """On what, where that is not every evaluation sample."""
    if 0 < parity.labelled < parity.samples:
        return f" ({parity.labelled} of {parity.samples} samples have labels)"
    return f" (on {inputs(parity)})" if parity.data == "calibration" else ""


def _enough(parity: Parity, limit: float, rows: int) -> int | None:
    """About how many rows would do if they went on like these: an interval's width falls with 1/√n, and with 1/n where
    no row has changed yet."""
    assert parity.drop_interval is not None
    assert parity.metric_drop is not None
    margin, width = 2 * limit - parity.metric_drop, parity.drop_interval[1] - parity.metric_drop
    if width / margin > _MOST_TIMES:
        return None
    power = 1 if parity.changed_rows == 0 else 2
    seen = rows_to_see(0.0, min(2 * limit / parity.row_loss, 1.0)) if parity.row_loss > 0 else 1
    return None if seen is None else max(math.ceil(rows * (width / margin) ** power), seen, rows + 1)


def _rows_for_certainty(parity: Parity, limit: float) -> str:
    """About how many rows would make sure of a loss beyond the limit, if they went on like these."""
    rows = parity.metric_rows or parity.rows
    if parity.drop_interval is None or parity.metric_drop is None or not rows:
        return ""
    beyond, width = parity.metric_drop - limit, parity.metric_drop - parity.drop_interval[0]
    if width / beyond > _MOST_TIMES:
        return ""
    return f"; about {math.ceil(rows * (width / beyond) ** 2):,} would decide"
