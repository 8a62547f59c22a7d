"""The file loss.json: a loss law with its intervals, its convergence, its points and its floor's profile."""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from hyperp import __version__
from hyperp.analysis.files import load_json, write_text
from hyperp.analysis.loss.bootstrap import Draws, ResamplingKind, parameter_intervals
from hyperp.analysis.loss.clusters import residual_correlation
from hyperp.analysis.loss.fit import (
    TIE,
    FloorProfile,
    LossFit,
    extrapolation_point,
    predict_loss,
    published_parameters,
)
from hyperp.analysis.loss.points import FORM_COLUMNS, Form
from hyperp.validation import Strict

LOSS_SCHEMA_VERSION = 1
FORMULAS: dict[Form, str] = {
    "power": "L(C) = E + A C^-b",
    "chinchilla": "L(N, D) = E + A N^-alpha + B D^-beta",
}


class Parameter(Strict):
    """A parameter with its percentile interval, which is None if it was pinned or nothing was resampled."""

    value: float = Field(ge=0)
    low: float | None
    high: float | None
    pinned: bool


class LossPoint(Strict):
    """One point: its flops, or parameters and tokens; its loss; the loss of the law; its number of rows.

    `data` is its data set, where the law has several.
    """

    at: dict[str, float]
    data: str | None = None
    loss: float = Field(gt=0)
    law: float = Field(gt=0)
    runs: int = Field(ge=1)


class ProfileRow(Strict):
    """The best fit with the floor held at E, that of the data set `data` where the law has several.

    `rise_percent` is how far the objective lies above its least value. `extrapolated` is the loss at
    `LossLaw.extrapolated_at`.
    """

    data: str | None = None
    E: float = Field(ge=0)
    objective: float = Field(ge=0)
    rise_percent: float | None
    exponents: dict[str, float]
    extrapolated: float = Field(gt=0)


class Resampling(Strict):
    """How the bootstrap intervals were made; see `bootstrap.bootstrap_loss`."""

    count: int = Field(ge=2)
    kind: ResamplingKind
    seed: int
    level: float = Field(gt=0, lt=1)
    not_converged: int = Field(ge=0)


class LossLaw(Strict):
    """A loss law fitted to ln L by the sum of Huber losses with threshold `delta`.

    `status` tells whether the fit converged, `at_bounds` which parameters ended at a bound. The fit began
    at `starts` points, and `agree` of them led to this optimum. `scatter` is the standard deviation of ln L
    about the law. `profile` has the best fit at each of many floors, and the loss that it predicts at
    `extrapolated_at`, ten times the largest compute.

    `tie` names exponents that are one parameter. With data sets, told apart by the column `by_data`, each has
    its own E, A and B, named E[NAME] and so on, and they share the exponents. `cluster` is the column that
    tells runs apart, `runs` how many there are, and `clusters` how many groups of them share no point, as the
    seeds of a mean do; `cluster_correlation` is the correlation of two residuals of one group.
    """

    schema_version: Literal[1] = LOSS_SCHEMA_VERSION
    form: Form
    formula: str
    parameters: dict[str, Parameter]
    objective: float = Field(ge=0)
    delta: float = Field(gt=0)
    tie: str | None = None
    by_data: str | None = None
    status: Literal["converged", "not converged"]
    at_bounds: list[str]
    starts: int = Field(ge=1)
    agree: int = Field(ge=1)
    scatter: float = Field(ge=0)
    resampling: Resampling | None
    profile: list[ProfileRow]
    extrapolated_at: dict[str, float]
    points: list[LossPoint]
    all_rows: bool
    edges: int = Field(ge=0)
    rows: int = Field(ge=1)
    dropped: dict[str, int]
    cluster: str | None = None
    runs: int | None = None
    clusters: int | None = None
    cluster_correlation: float | None = None
    warnings: list[str] = Field(default_factory=list)
    context: dict[str, str]
    metric: str
    mapping: dict[str, str]
    where: dict[str, str]
    records: str
    records_sha256: str
    version: str
    created: str
    command: str

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.agree > self.starts:
            raise ValueError(f"agree must be at most starts={self.starts}, got {self.agree}")
        tied = self.tie is not None and not self.parameters["alpha"].pinned
        free = sum(not one.pinned for one in self.parameters.values()) - tied
        if len(self.points) < free + 1:
            raise ValueError(
                f"points must be at least {free + 1} for {free} parameters, got {len(self.points)}"
            )
        return self


def loss_law_record(
    fit: LossFit, profiles: Sequence[FloorProfile], draws: Draws | None, source: Mapping[str, Any]
) -> LossLaw:
    """The record of a fit for loss.json.

    Args:
        fit: the law.
        profiles: of the floor of every data set.
        draws: the resamples, if any.
        source: mapping, where, records, records_sha256, command and warnings.
    """
    points, names = fit.points, FORM_COLUMNS[fit.points.form]
    related = points.cluster_n
    return LossLaw(
        form=points.form,
        formula=_formula(fit),
        parameters=_parameters(fit, draws),
        objective=fit.objective,
        delta=fit.delta,
        tie=TIE if fit.layout.tied else None,
        by_data=points.by_data,
        status="converged" if fit.converged else "not converged",
        at_bounds=list(fit.at_bounds),
        starts=fit.starts,
        agree=fit.agree,
        scatter=fit.scatter,
        resampling=None if draws is None else _resampling(draws),
        profile=[row for one in profiles for row in _profile_rows(fit, one)],
        extrapolated_at=dict(zip(names, extrapolation_point(points).tolist(), strict=True)),
        points=_points(fit),
        all_rows=points.all_rows,
        edges=points.edges,
        rows=points.rows,
        dropped=points.dropped,
        cluster=points.cluster,
        runs=points.runs,
        clusters=points.clusters,
        cluster_correlation=None if related is None else residual_correlation(fit.residual_n, related),
        context=points.context,
        metric=points.metric,
        version=__version__,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **source,
    )


def _formula(fit: LossFit) -> str:
    by_data = fit.points.by_data
    tied = ", alpha = beta" if fit.layout.tied else ""
    return FORMULAS[fit.points.form] + tied + (f", all but the exponents by {by_data}" if by_data else "")


def _parameters(fit: LossFit, draws: Draws | None) -> dict[str, Parameter]:
    values = published_parameters(fit, fit.z_P[None])[0].tolist()
    ranges = {} if draws is None else parameter_intervals(fit, draws)
    pinned, found = fit.pinned, {}
    for name, value in zip(fit.names, values, strict=True):
        low, high = (None, None) if pinned[name] else ranges.get(name, (None, None))
        found[name] = Parameter(value=value, low=low, high=high, pinned=pinned[name])
    return found


def _resampling(draws: Draws) -> Resampling:
    return Resampling(
        count=len(draws.z_RP),
        kind=draws.kind,
        seed=draws.seed,
        level=draws.level,
        not_converged=draws.not_converged,
    )


def _points(fit: LossFit) -> list[LossPoint]:
    points, names = fit.points, FORM_COLUMNS[fit.points.form]
    law_n = predict_loss(fit, fit.z_P[None], points.x_Kn, points.set_n)[0]
    data = [None if points.by_data is None else points.sets[s] for s in points.set_n]
    columns = (points.x_Kn.T.tolist(), data, points.loss_n.tolist(), law_n.tolist(), points.runs_n.tolist())
    return [
        LossPoint(at=dict(zip(names, x, strict=True)), data=one, loss=loss, law=law, runs=runs)
        for x, one, loss, law, runs in zip(*columns, strict=True)
    ]


def _profile_rows(fit: LossFit, profile: FloorProfile) -> list[ProfileRow]:
    """The rows of the profile; `rise_percent` is None where the law goes through every point."""
    least = float(profile.objective_F.min())
    data = None if fit.points.by_data is None else fit.points.sets[profile.data_set]
    exponents_FK = fit.layout.exponents(profile.z_FP)
    exact = least <= 1e-9 * fit.delta**2
    rows = []
    for floor, value, fitted, far in zip(
        profile.floor_F.tolist(),
        profile.objective_F.tolist(),
        exponents_FK.tolist(),
        profile.extrapolated_F.tolist(),
        strict=True,
    ):
        exponents = dict(zip(fit.exponent_names, fitted, strict=True))
        rise = None if exact else 100 * (value / least - 1)
        rows.append(
            ProfileRow(
                data=data,
                E=floor,
                objective=value,
                rise_percent=rise,
                exponents=exponents,
                extrapolated=far,
            )
        )
    return rows


def save_loss(law: LossLaw, path: str | Path) -> None:
    """Write a loss law to a JSON file, atomically."""
    write_text(law.model_dump_json(indent=2) + "\n", path)


def load_loss(path: str | Path) -> LossLaw:
    """Read a loss law from a JSON file; see `files.load_json` for its errors."""
    return load_json(path, LossLaw, LOSS_SCHEMA_VERSION)
