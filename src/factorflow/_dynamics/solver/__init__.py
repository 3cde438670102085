from factorflow._dynamics.solver.radau import Radau as Radau
from factorflow._dynamics.solver.rkc2 import RKC2 as RKC2
from factorflow._dynamics.solver.stabilized import Stabilized as Stabilized
