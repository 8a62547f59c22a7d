"""Numbers, intervals and levels as text."""

from hyperp.analysis.vocabulary import LEVEL


def format_number(value: float | None, digits: int = 4) -> str:
    """`digits` significant digits, "-" for None."""
    return "-" if value is None else f"{value:.{digits}g}"


def format_interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """ "low to high", or "unbounded"."""
    return "unbounded" if low is None or high is None else f"{low:.{digits}g} to {high:.{digits}g}"


def format_degrees(df: int) -> str:
    """Such as "1 degree of freedom"."""
    return f"{df} degree{'' if df == 1 else 's'} of freedom"


def format_percent(level: float = LEVEL) -> str:
    """Such as "95%"."""
    return f"{100 * level:g}%"
