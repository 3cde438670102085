"""Figures and checked claims as one static page that opens offline.

`write_report` makes the page, `write_claims` the machine-readable list of claims, and
`claims_table` the same list for a terminal.
"""

from factorflow.report.claims import Verdict as Verdict
from factorflow.report.claims import claims_table as claims_table
from factorflow.report.claims import write_claims as write_claims
from factorflow.report.html import ReportFigure as ReportFigure
from factorflow.report.html import write_report as write_report
from factorflow.report.reproduce import Reproduction as Reproduction
from factorflow.report.reproduce import reproduce as reproduce
from factorflow.report.versions import versions as versions
