"""One thread for LAPACK while runs are followed, in any number of threads of Python."""

from threadpoolctl import ThreadpoolController, threadpool_limits

from factorflow._threads import one_blas_thread


def counts() -> set[int]:
    return {
        library["num_threads"] for library in ThreadpoolController().select(user_api="blas").info()
    }


def test_the_limit_holds_until_the_last_one_leaves():
    with threadpool_limits(2, user_api="blas"):
        before = counts()
        first, second = one_blas_thread(), one_blas_thread()
        first.__enter__()
        second.__enter__()
        assert counts() == {1}
        first.__exit__(None, None, None)
        assert counts() == {1}
        second.__exit__(None, None, None)
        assert counts() == before == {2}
