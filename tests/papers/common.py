"""What every paper's claims are held to."""


def assert_holds_until_corrupted(claim, dataset, mutations):
    """The claim holds on the dataset, and on none of its mutations."""
    verdict = claim(dataset)
    assert verdict.holds, verdict.measured
    for mutate in mutations:
        mutated = claim(mutate(dataset))
        assert not mutated.holds, mutated.measured
