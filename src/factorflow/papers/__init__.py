"""Papers: experiments, figures and claims, one module or package per paper."""

from factorflow.papers.base import Claim as Claim
from factorflow.papers.base import Figure as Figure
from factorflow.papers.base import Paper as Paper
from factorflow.papers.base import Verdict as Verdict
from factorflow.papers.catalogue import PAPERS as PAPERS
from factorflow.papers.catalogue import load_paper as load_paper
