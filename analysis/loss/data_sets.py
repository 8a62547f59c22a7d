"""Whether the data sets of a loss law share its exponents: what each of them gives alone."""

from hyperp.analysis.errors import Refusal
from hyperp.analysis.loss.bootstrap import Draws, parameter_intervals
from hyperp.analysis.loss.fit import LossFit, fit_loss_law, published_parameters


def exponent_warnings(fit: LossFit, draws: Draws | None) -> list[str]:
    """A warning for each data set whose own exponent lies outside the interval of the shared one.

    A data set that has too few points for exponents of its own says nothing.
    """
    if fit.points.by_data is None or draws is None:
        return []
    pins = {name: value for name, value in fit.pins.items() if not name.startswith("E")}
    tie = "alpha=beta" if fit.layout.tied else None
    shared, found = parameter_intervals(fit, draws), []
    for index, one in enumerate(fit.points.sets):
        floor = fit.held.get(index)
        own_pins = pins if floor is None else {**pins, "E": floor}
        try:
            alone = fit_loss_law(fit.points.of_set(index), own_pins, fit.delta, tie)
        except Refusal:
            continue
        own = dict(zip(alone.names, published_parameters(alone, alone.z_P[None])[0].tolist(), strict=True))
        for name in fit.exponent_names:
            low, high = shared[name]
            if not fit.pinned[name] and not low <= own[name] <= high:
                found.append(
                    f"{fit.points.by_data}={one} alone puts {name} at {own[name]:.3g}, outside the interval "
                    f"{low:.3g} to {high:.3g} of all data sets together"
                )
    return found
