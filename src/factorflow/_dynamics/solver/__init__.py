from factorflow._dynamics.solver.radau import Radau as Radau
from factorflow._dynamics.solver.rkc2 import RKC2 as RKC2
