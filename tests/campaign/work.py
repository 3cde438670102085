"""What a worker process of the campaign does; spawned ones find nothing in `__main__`."""

import warnings

__all__ = ["work"]


def work(seed: int, numbers: list[int], seconds: float, channel) -> None:
    import jax
    from threadpoolctl import threadpool_limits

    jax.config.update("jax_enable_x64", True)
    from campaign.batch import run_structure
    from campaign.draw import draw_structure

    warnings.simplefilter("ignore")
    threadpool_limits(1, user_api="blas")  # a process for every core
    for number in numbers:
        channel.send(("began", number))
        for batch in run_structure(seed, draw_structure(seed, number), seconds):
            channel.send(("portion", batch))
        channel.send(("done", number))
    channel.send(("idle", None))
