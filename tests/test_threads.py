"""One thread for LAPACK while runs are followed, in any number of threads of Python."""

from threadpoolctl import threadpool_limits

from factorflow._threads import _controller, one_blas_thread


def counts() -> set[int]:
    """Of the libraries that were there when the first run was followed; JAX's is one of them."""
    return {library["num_threads"] for library in _controller().select(user_api="blas").info()}


def test_the_limit_holds_until_the_last_one_leaves():
    with threadpool_limits(2, user_api="blas"):
        before = counts()
        assert 2 in before  # other packages may bring a library of their own, for one thread
        first, second = one_blas_thread(), one_blas_thread()
        first.__enter__()
        second.__enter__()
        assert counts() == {1}
        first.__exit__(None, None, None)
        assert counts() == {1}
        second.__exit__(None, None, None)
        assert counts() == before
