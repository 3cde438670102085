"""The table of verdicts from made-up statuses, and what is made of limits by seed and scale."""

import itertools

import numpy as np
import pytest

from factorflow.analysis._limits import Limit
from factorflow.analysis._quantities import (
    Minima,
    Quantity,
    _norm_status,
    _quantity,
    _rank,
    _rank_status,
    judge_norms,
    judge_ranks,
)
from factorflow.analysis._runs import Runs
from factorflow.analysis._verdict import explain, verdict_of
from factorflow.reference import EffectiveRankBounds, MinimumNorm, SolutionRanks

# NumPy and drawings are the same in any session: once is enough.
pytestmark = pytest.mark.x64

CLOSED, OPEN = ("minimized", "above", "diverges"), ("undecided", "at best known")


def quantity(name, status, decisive=True, limit=2.0, limit_error=0.0):
    return Quantity(
        name=name,
        limit=limit,
        limit_error=limit_error,
        infimum_lower=1.0,
        infimum_upper=1.0,
        attained=True,
        ratio=2.0,
        status=status,
        loss_slope=0.0,
        trend=1.0,
        ratios=np.ones((3, 1)),
        decisive=decisive,
    )


def verdict(rank, norms, quasi=(), effective_rank="undecided"):
    """Of statuses; norms in the order given."""
    return verdict_of(
        [
            *(quantity(name, status) for name, status in norms.items()),
            *(
                quantity(f"schatten_norm[0.{k}]", status, decisive=False)
                for k, status in enumerate(quasi, 1)
            ),
            quantity("rank", rank),
            quantity("effective_rank", effective_rank, decisive=False),
        ]
    )


@pytest.mark.parametrize("nuclear", CLOSED)
@pytest.mark.parametrize("rank", ["minimized", "above"])
@pytest.mark.parametrize("other", ["above", "diverges"])
def test_every_closed_case(nuclear, rank, other):
    expected = {
        ("minimized", "minimized"): "both",
        ("minimized", "above"): "norm: nuclear_norm",
        ("above", "minimized"): "rank",
        ("diverges", "minimized"): "rank",
        ("above", "above"): "neither",
        ("diverges", "above"): "neither",
    }
    norms = {"nuclear_norm": nuclear, "frobenius_norm": other}
    assert verdict(rank, norms) == expected[nuclear, rank]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_ties_are_listed_with_the_nuclear_norm_first(order):
    names = ["nuclear_norm", "frobenius_norm", "spectral_norm"]
    norms = {names[k]: "minimized" for k in order}
    kind, _, listed = verdict("above", norms).partition(": ")
    assert kind == "norm"
    first, *rest = listed.split(", ")
    assert first == "nuclear_norm"
    # The others keep the order that was asked for.
    assert rest == [name for name in norms if name != "nuclear_norm"]
    assert verdict("minimized", norms) == "both"


def test_norms_that_are_not_minimized_are_not_listed():
    norms = {"frobenius_norm": "above", "spectral_norm": "minimized", "nuclear_norm": "undecided"}
    assert verdict("above", norms) == "norm: spectral_norm"


@pytest.mark.parametrize("rank", OPEN)
@pytest.mark.parametrize("nuclear", [*CLOSED, *OPEN])
def test_an_open_rank_leaves_everything_open(rank, nuclear):
    assert verdict(rank, {"nuclear_norm": nuclear}) == "undecided"


@pytest.mark.parametrize("rank", ["minimized", "above"])
@pytest.mark.parametrize("status", OPEN)
@pytest.mark.parametrize("other", ["above", "diverges"])
def test_an_open_norm_leaves_it_open_unless_another_is_minimized(rank, status, other):
    assert verdict(rank, {"nuclear_norm": other, "frobenius_norm": status}) == "undecided"
    closed = verdict(rank, {"nuclear_norm": "minimized", "frobenius_norm": status})
    assert closed == ("both" if rank == "minimized" else "norm: nuclear_norm")


@pytest.mark.parametrize("status", [*CLOSED, *OPEN])
def test_quasi_norms_decide_nothing(status):
    for rank, nuclear in itertools.product(["minimized", "above"], CLOSED):
        without = verdict(rank, {"nuclear_norm": nuclear})
        found = verdict(rank, {"nuclear_norm": nuclear}, quasi=["above", status])
        assert found == ("undecided" if without == "neither" and status in OPEN else without)


@pytest.mark.parametrize("rank", ["minimized", "above"])
def test_without_a_norm_that_decides_it_is_undecided(rank):
    assert verdict(rank, {}, quasi=["above"]) == "undecided"


@pytest.mark.parametrize("status", [*CLOSED, *OPEN])
def test_the_effective_rank_decides_nothing(status):
    for rank, nuclear in itertools.product(["minimized", "above"], CLOSED):
        norms = {"nuclear_norm": nuclear}
        assert verdict(rank, norms, effective_rank=status) == verdict(rank, norms)


# --- From limits to statuses


@pytest.mark.parametrize(
    ("value", "error", "known", "status"),
    [
        (2.0, 1e-6, True, "minimized"),
        (2.0, 1e-6, False, "at best known"),
        (2.0 + 1.9e-3, 1e-6, True, "minimized"),  # 1e-3 of 2 is allowed
        (2.0 + 2.1e-3, 1e-6, True, "above"),
        (2.0 + 2.1e-3, 1e-6, False, "above"),
        (2.0 + 2.1e-3, 1e-3, True, "undecided"),
        (2.0, 2.1e-3, True, "undecided"),
        (3.0, 0.9, True, "above"),
        (3.0, 1.1, True, "undecided"),
        (1.9, 1e-6, True, "undecided"),  # below a proved minimum
        (1.9, 1e-6, False, "at best known"),  # better than the best known
    ],
)
def test_status_of_a_norm_whose_minimum_is_two(value, error, known, status):
    limit = Limit("converges", value, error, 0.0, 2.0)
    assert _norm_status(limit, 2.0, known, 1e-3) == status


@pytest.mark.parametrize(("kind", "status"), [("diverges",) * 2, ("unsettled", "undecided")])
def test_status_without_a_limit(kind, status):
    assert _norm_status(Limit(kind, 2.0, np.inf, -0.5, 2.0), 2.0, True, 1e-3) == status


@pytest.mark.parametrize(
    ("vanish", "bounds"),
    [
        ([True, True, True], (1, 1)),
        ([False, True, True], (2, 2)),
        ([False, False, True], (3, 3)),
        ([None, True, True], (1, 2)),
        ([False, None, True], (2, 3)),
        ([None, None, True], (1, 3)),
        ([None, None, None], (1, 3)),
        ([None, False, True], (3, 3)),  # what stays away from rank 2 stays away from rank 1
        ([True], (1, 1)),
    ],
)
def test_bounds_of_the_rank_from_what_vanishes(vanish, bounds):
    assert _rank(vanish) == bounds


@pytest.mark.parametrize(
    ("limit", "infimum", "status"),
    [
        ((1, 1), (1, 1), "minimized"),
        ((2, 2), (1, 1), "above"),
        ((3, 3), (1, 2), "above"),
        ((1, 2), (2, 2), "minimized"),  # no less than the infimum in any case
        ((1, 2), (1, 1), "undecided"),
        ((2, 2), (1, 2), "at best known"),
        ((1, 1), (1, 2), "minimized"),
        ((2, 2), (1, 3), "undecided"),
        ((2, 3), (1, 1), "above"),
        ((2, 3), (1, 2), "undecided"),
    ],
)
def test_status_of_the_rank(limit, infimum, status):
    assert _rank_status(*limit, *infimum) == status


def of_seeds(limits, statuses=("above", "above")):
    return _quantity(
        "nuclear_norm", limits, np.full((3, 2), 1.5), list(statuses), (1.0, 1.0), True, True
    )


def test_the_error_covers_every_seed():
    found = of_seeds([Limit("converges", 1.0, 0.1, -0.2), Limit("converges", 2.0, 0.2, -0.1)])
    assert found.limit == found.ratio == 1.5
    for low, high in ((0.9, 1.1), (1.8, 2.2)):
        assert found.limit - found.limit_error <= low
        assert high <= found.limit + found.limit_error
    assert found.loss_slope == -0.1


def test_an_infinite_limit_of_one_seed_has_no_finite_error():
    limits = [Limit("converges", 1.0, 0.1), Limit("diverges", np.inf, np.inf)]
    assert of_seeds(limits).limit_error == np.inf
    assert of_seeds(limits[1:] * 2).limit_error == np.inf


@pytest.mark.parametrize(
    ("statuses", "status"),
    [(("above",) * 2, "above"), (("above", "minimized"), "undecided"), (("above",), "above")],
)
def test_seeds_that_disagree_decide_nothing(statuses, status):
    limits = [Limit("converges", 1.0, 0.1)] * len(statuses)
    assert of_seeds(limits, statuses).status == status


# --- From runs to statuses

LOSSES = np.logspace(-1, -10, 37)
SCALES = (1e-2, 1e-3, 1e-4, 1e-5)


def made_up(second, usable=None):
    """Runs whose first singular value is 1, and the second a function of loss and scale."""
    values = np.stack([np.broadcast_to(second(LOSSES, scale), LOSSES.shape) for scale in SCALES])
    logs = np.log(np.stack([np.ones_like(values), values], axis=-1))[:, None]
    words = np.full((len(SCALES), 1), "flow_faithful")
    if usable is None:
        usable = np.ones((len(SCALES), 1, 37), bool)
    return Runs(LOSSES, logs, usable, usable, np.ones((len(SCALES), 1, 2, 2)), *[words] * 4)


def known(infimal=1, norm=1.0, certified=True):
    """Of a problem with a least solution of Frobenius norm 1."""
    nothing = np.zeros((2, 2))
    ranks = SolutionRanks(infimal, infimal, infimal, infimal, nothing, nothing, 1e-8, ())
    lower = norm if certified else 0.5 * norm
    least = MinimumNorm("nuclear_norm", norm, lower, nothing, 0.0, certified, "cvxpy", 1)
    bounds = EffectiveRankBounds(1.0, 1.0, True, nothing, False)
    return Minima({"nuclear_norm": least}, ranks, bounds, infimal, 1.0)


def rank_of(second, usable=None, infimal=1):
    return judge_ranks(made_up(second, usable), known(infimal), SCALES, 1e-3)[0]


@pytest.mark.parametrize(
    ("second", "limit", "status"),
    [
        (lambda loss, scale: scale, 1, "minimized"),  # vanishes with the scale
        (lambda loss, scale: loss**0.5, 1, "minimized"),  # with the loss, at every scale
        (lambda loss, scale: 0.2 + scale, 2, "above"),
        (lambda loss, scale: 5e-4 + 0 * loss, 2, "above"),  # small, but moved by neither
        (lambda loss, scale: 5e-4 + scale + loss**0.5, 2, "above"),
    ],
)
def test_rank_of_what_the_second_singular_value_does(second, limit, status):
    found = rank_of(second)
    assert (found.limit, found.limit_error, found.status) == (limit, 0, status)


def test_rank_that_is_not_decided_is_an_interval():
    found = rank_of(lambda loss, scale: 0.5 * scale**0.02)
    assert (found.limit, found.limit_error, found.status) == (1, np.inf, "undecided")


def test_runs_that_are_not_certified_do_not_count():
    """From the third scale on nothing is known: two scales show no trend in scale."""
    usable = np.ones((4, 1, 37), bool)
    usable[2:, :, 5:] = False
    assert rank_of(lambda loss, scale: 0.2 + scale, usable).status == "undecided"
    found = judge_norms(made_up(lambda loss, scale: scale, usable), known(), SCALES, 1e-3)[0]
    assert found.status == "undecided"


def test_scales_below_one_that_is_not_certified_do_not_count():
    """However well they seem to be settled, and what could not be followed to the end."""
    usable = np.ones((4, 1, 37), bool)
    usable[1, :, 24:] = False
    runs = made_up(lambda loss, scale: scale, usable)
    assert runs.certified[:, 0].tolist() == [True, False, False, False]
    assert judge_norms(runs, known(), SCALES, 1e-3)[0].status == "undecided"
    # Three decades of loss may be missing at the end.
    usable[1, :, 24] = True
    runs = made_up(lambda loss, scale: scale, usable)
    assert np.all(runs.certified)
    assert judge_norms(runs, known(), SCALES, 1e-3)[0].status == "minimized"


def test_a_last_scale_that_is_not_certified_is_left_out():
    usable = np.ones((4, 1, 37), bool)
    usable[3, :, 5:] = False
    runs = made_up(lambda loss, scale: scale, usable)
    assert judge_norms(runs, known(), SCALES, 1e-3)[0].status == "minimized"
    assert judge_ranks(runs, known(), SCALES, 1e-3)[0].status == "minimized"


def test_a_run_without_rows_has_no_ratio():
    usable = np.ones((4, 1, 37), bool)
    usable[3] = False
    found = rank_of(lambda loss, scale: scale, usable)
    assert np.isnan(found.ratios[3, 0])
    assert found.ratios[2, 0] == 1


@pytest.mark.parametrize(
    ("second", "norm", "certified", "status"),
    [
        (lambda loss, scale: 1.0 + scale, 2.0, True, "minimized"),
        (lambda loss, scale: 1.0 + scale, 2.0, False, "at best known"),
        (lambda loss, scale: 1.0 + scale, 1.5, True, "above"),
        (lambda loss, scale: 1.0 + scale, 2.5, True, "undecided"),
        (lambda loss, scale: loss**-0.5, 2.0, True, "diverges"),
        (lambda loss, scale: loss**-0.3, 2.0, True, "undecided"),
    ],
)
def test_norms_of_what_the_second_singular_value_does(second, norm, certified, status):
    (found,) = judge_norms(made_up(second), known(norm=norm, certified=certified), SCALES, 1e-3)
    assert found.status == status
    assert found.decisive is certified
    if status not in ("diverges", "undecided"):
        assert abs(found.limit - 2) <= found.limit_error
        np.testing.assert_allclose(found.ratio, 2 / norm, rtol=1e-5)
        np.testing.assert_allclose(found.ratios[:, 0], (2 + np.array(SCALES)) / norm, rtol=1e-5)


# --- The sentences


def explained(status, verdict="neither", rank=(2.0, 0.0), attained=True, runs=("flow_faithful",)):
    quantities = [
        quantity("nuclear_norm", status),
        quantity("rank", "above", limit=rank[0], limit_error=rank[1]),
        quantity("effective_rank", "above", decisive=False, limit=1.5),
    ]
    nothing = np.zeros((2, 2))
    infimal = 2 if attained else 1
    ranks = SolutionRanks(2, 2, infimal, infimal, nothing, nothing, 1e-8, ())
    assert ranks.attained is attained
    effective = EffectiveRankBounds(1.0, 1.0, True, nothing, False)
    minima = Minima({}, ranks, effective, infimal, 1.0)
    verdicts = np.array([runs])
    words = np.array([[f"run {k} drifts" for k in range(len(runs))]])
    usable = np.ones((1, len(runs), 1), bool)
    record = Runs(nothing[0], nothing, usable, usable, nothing, verdicts, verdicts, words, verdicts)
    return explain(verdict, quantities, minima, record)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("minimized", "nuclear_norm: tends to its minimum"),
        ("above", "nuclear_norm: stays above"),
        ("diverges", "nuclear_norm: diverges"),
        ("at best known", "no proven minimum"),
        ("undecided", "nuclear_norm: is undecided"),
    ],
)
def test_every_status_has_its_words(status, words):
    assert words in explained(status)
    assert "effective rank tends to 1.5, over an infimum of 1" in explained(status)


@pytest.mark.parametrize(
    ("rank", "words"),
    [
        ((2.0, 0.0), "limit has rank 2;"),
        ((1.0, np.inf), "rank 1 or more;"),
        ((2.5, 0.5), "rank between 2 and 3, by seed;"),
    ],
)
def test_the_rank_says_how_far_it_is_known(rank, words):
    assert words in explained("above", rank=rank)


def test_an_infimum_that_is_not_attained_and_runs_that_are_not_certified_are_named():
    told = explained("above", attained=False, runs=("flow_faithful", "inconclusive"))
    assert "attained by no solution (minimal rank 2 or more)" in told
    assert "1 of 2 flows are not certified as a whole; the first: run 1 drifts" in told
    plain = explained("above")
    assert "attained by no" not in plain
    assert "not certified" not in plain


def test_an_undecided_verdict_says_what_may_help():
    assert "loss_ratio" in explained("undecided", "undecided")
    assert "loss_ratio" not in explained("undecided")
