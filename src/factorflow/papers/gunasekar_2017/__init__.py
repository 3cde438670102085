"""Gunasekar et al. (NeurIPS 2017): matrix factorization and the least nuclear norm."""

from factorflow.papers.base import Paper
from factorflow.papers.gunasekar_2017 import commuting, random_sensing

PAPER = Paper(
    durations={"quick": "30 seconds", "paper": "two minutes", "beyond": "ten minutes"},
    name="gunasekar_2017",
    title="Implicit regularization in matrix factorization",
    abstract=(
        "Few linear measurements of a positive semidefinite matrix have many solutions. Gradient "
        "flow over a matrix factorization from a vanishing multiple of the identity finds the one "
        "of least nuclear norm, provably where measurements commute, at depth 2 and 3. With "
        "Gaussian measurements it comes near, or finds the solution of least rank."
    ),
    citation="""@inproceedings{gunasekar2017implicit,
    author = {Gunasekar, Suriya and Woodworth, Blake and Bhojanapalli, Srinadh and
              Neyshabur, Behnam and Srebro, Nathan},
    title = {Implicit Regularization in Matrix Factorization},
    booktitle = {Advances in Neural Information Processing Systems},
    year = {2017},
}""",
    figures=(commuting.FIGURE, random_sensing.FIGURE),
    notes=(
        "The paper factorizes as a matrix times its own transpose. Here factors are free, and "
        "start at the identity: with symmetric measurements, those of depth 2 stay transposes of "
        "each other.",
        "Commuting measurements are diagonal. In a rotated basis they would commute up to rounding "
        "only, and what rounding leaves off the diagonal grows from small initializations.",
        "Minima of the nuclear norm carry a dual certificate; an instance without one fails its "
        "claims.",
    ),
)
