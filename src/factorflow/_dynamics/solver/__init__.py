from factorflow._dynamics.solver.rkc2 import RKC2 as RKC2
