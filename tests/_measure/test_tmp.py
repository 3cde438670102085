import pytest
from _measure.references import assert_agrees, rows
for m in ("norms","ranks","spectrum","fit","conserved"):
    pass
@pytest.mark.parametrize(("case","measure","family","parameters"), sum((rows(m) for m in ("norms","ranks","spectrum","fit","conserved")),[]))
def test_it(case,measure,family,parameters): assert_agrees(case,measure,family,parameters)
