"""How diverse texts and samples are: collisions, n-gram similarity, Vendi score, and a report on a data set's answers.

Nothing here needs torch, but for the tokenizer or the embedding model that a report is asked for.
"""

from hf_lifealign.diversity.collision import exact_collision, prefix_collision
from hf_lifealign.diversity.judgement import DiversityWarning
from hf_lifealign.diversity.kernels import mean_similarity, ngram_features
from hf_lifealign.diversity.ngrams import distinct_ngrams
from hf_lifealign.diversity.report import DiversityReport, diversity_report
from hf_lifealign.diversity.vendi import vendi_score, vendi_score_of_features

__all__ = [
    "DiversityReport",
    "DiversityWarning",
    "distinct_ngrams",
    "diversity_report",
    "exact_collision",
    "mean_similarity",
    "ngram_features",
    "prefix_collision",
    "vendi_score",
    "vendi_score_of_features",
]
