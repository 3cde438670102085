"""Measures: what is watched along a run. Importing this package registers all of them."""

from factorflow._measure import conserved, fit, norms, ranks, spectrum, tensors
from factorflow._measure.base import MEASURES as MEASURES
from factorflow._measure.base import Measure as Measure
from factorflow._measure.base import as_measure as as_measure
from factorflow._measure.base import as_measures as as_measures
from factorflow._measure.base import measure as measure
from factorflow._measure.fit import entry as entry
from factorflow._measure.norms import entrywise_norm as entrywise_norm
from factorflow._measure.norms import ky_fan_norm as ky_fan_norm
from factorflow._measure.norms import schatten_norm as schatten_norm
from factorflow._measure.ranks import distance_to_rank as distance_to_rank
from factorflow._measure.ranks import rank as rank
from factorflow._measure.snapshot import Snapshot as Snapshot
from factorflow._measure.tensors import largest_component_norms as largest_component_norms
from factorflow._measure.tensors import multilinear_rank as multilinear_rank

__all__ = ["conserved", "fit", "norms", "ranks", "spectrum", "tensors"]
