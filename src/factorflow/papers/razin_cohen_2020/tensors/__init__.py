"""The paper's second experiment: descent over CP factorizations finds low tensor rank."""

from factorflow.papers.razin_cohen_2020.tensors.figures import FIGURES as FIGURES
