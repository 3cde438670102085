"""Every kind of bad input that users were promised a clear message for has a test of it."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

# What it is, where its test lives, and the pattern of the message that the test expects there.
PROMISED = [
    ("indices out of range", "_problem/test_completion.py", r"is out of range for shape"),
    ("contradicting duplicates", "_problem/test_completion.py", r"observed more than once"),
    ("empty observations", "_problem/test_completion.py", r"indices is empty"),
    ("NaN", "_problem/test_completion.py", r"values holds nan"),
    ("infinity", "_problem/test_completion.py", r"values holds -inf"),
    ("wrong shapes of values", "_problem/test_completion.py", r"one per row"),
    ("wrong shapes of measurements", "_problem/test_sensing.py", r"one per measurement"),
    ("wrong shapes of factors", "test_spec.py", r"shapes"),
    ("depth 0", "_factorization/test_deep_matrix.py", r"depth counts matrices"),
    ("narrow hidden width", "_factorization/test_balanced_factors.py", r"is too small"),
    ("scale 0", "_initializer/test_initializers.py", r"positive and finite"),
    ("underflow of the product", "test_spec.py", r"underflows"),
    ("negative p", "_measure/test_base.py", r"p must be positive"),
    ("distance beyond the dimensions", "_measure/test_base.py", r"k must be below"),
    ("unknown measure", "_measure/test_base.py", r"Did you mean"),
    ("unknown optimizer", "_dynamics/test_optimizers.py", r"Did you mean"),
    ("unbalanced factors", "_dynamics/test_certified_flows.py", r"balancedness gap of"),
    ("the wrong branch", "_dynamics/test_certified_flows.py", r"sign opposite to eps"),
    ("losses below rounding", "_dynamics/test_certified_flows.py", r"is below"),
    ("determinant of zero", "_initializer/test_initializers.py", r"singular"),
    ("order 1", "_factorization/test_cp.py", r"a vector has nothing to factor"),
    ("rank 0", "_factorization/test_cp.py", r"rank counts components"),
    ("factors beyond memory", "_factorization/test_cp.py", r"Give a smaller rank="),
    ("singular values of a tensor", "_measure/test_tensors.py", r"ask for `multilinear_rank`"),
    ("components of a matrix", "_measure/test_tensors.py", r"components of a CP"),
    ("an end without a limit", "test_observe.py", r"name one in Stop"),
    ("unknown integrator", "_dynamics/test_gradient_flow.py", r"Did you mean"),
    ("unknown field", "experiments/test_experiment.py", r"Did you mean"),
    ("unknown paper", "papers/test_razin_cohen_2020.py", r"Did you mean"),
    ("folder of something else", "experiments/test_store.py", r"holds something else"),
    ("report in a folder of something else", "cli/test_refusals.py", r"holds something else"),
    ("interrupted write", "experiments/test_damage.py", r"No space left on device"),
    ("truncated result file", "experiments/test_damage.py", r"truncated"),
    ("unwritable table", "cli/test_refusals.py", r"does not exist; create it"),
    ("a name given twice in JSON", "cli/test_refusals.py", r"'seed' is given"),
    ("sizes beyond memory", "cli/test_refusals.py", r"takes 64000000000000 bytes"),
]


@pytest.mark.parametrize(
    ("file", "message"), [row[1:] for row in PROMISED], ids=[row[0] for row in PROMISED]
)
def test_a_promised_message_has_a_test(file, message):
    source = (TESTS / file).read_text()
    assert re.search(rf"[\"'].*{message}.*[\"']", source), f"no test in {file} expects {message!r}"
    assert "pytest.raises(" in source or '(2, "")' in source
