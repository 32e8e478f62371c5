"""The sections of the page of results: how each comparison is shown, and what is asked of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.results_targets import (
    LENGTHS,
    SHAPE_FIGURES,
    Figures,
    Judged,
    Target,
    all_judged,
    continuation_target,
    shape_read,
)

MATRIX = ("arithmetic", "subjectivity", "continuation", "infilling", "infilling-passages")
"""The comparisons of methods; the others are sweeps of settings."""
_BY_R = "effective sample size by R/q"
_THREE, _FOUR, _FIVE = (f"test_{n}_operands.accuracy" for n in (3, 4, 5))
_INFILLING_FIGURES = {
    "mean_log_reward": "mean log R",
    "max_log_reward": "best log R",
    "bleu": "BLEU-4",
    "similarity": "similarity",
    "diversity": "diversity",
    "ess": _BY_R,
}
_SHAPE = (
    "The two failures of GFlowNet objectives on language models that RapTB (arXiv 2603.00454) tells of, by the "
    "diagnosis of 128 draws for each of {} {}: effective sample size (share of the draws); length bias (tokens, above "
    "0 too long); prefix collapse (nats of the first token's entropy that are missing); distinct prefixes of three "
    "tokens. Length bias and collapse are against the draws weighted by R/q, means over all queries, and told where on "
    "the mean 10 draws of a query count: of those where fewer do they are mostly chance. {} are of other draws, the "
    "evaluation's: {}; short texts have more log R, whatever draws them. tb and raptb with submodular replay were "
    "trained while a query's learned log Z still moved on between its batches, without it since that was mended."
)


@dataclass(frozen=True)
class Section:
    """How a comparison is shown."""

    name: str
    title: str
    text: str
    figures: Mapping[str, str]
    """Column titles by figure."""
    paper: str = ""
    """Markdown: the paper's numbers."""
    target: Callable[[Figures, float], Sequence[Judged]] = lambda *_: ()
    """What is asked of methods, and whether it is met, by their figures and the effective sample size from which on
    weights tell anything; none where a method is missing."""
    read: Callable[[Figures, float], Sequence[str]] = lambda *_: ()
    """What else they say: sentences."""
    curve: str = ""
    """What is told of methods while they trained; without it the first of its figures that was looked at."""


_AT_FIVE = "accuracy at 5 operands"
_ARITHMETIC = tuple(
    Target(method, _FIVE, than, _AT_FIVE, factor=factor, rows=200, like=(_THREE, _FOUR), starts_from=start)
    for method, than, factor, start in (
        ("GFlowNet", "SFT", 1.0, ""),
        ("GFlowNet", "SFT", 2.0, ""),
        ("GFlowNet", "reward maximisation (RLOO)", 1.0, ""),
        ("GFlowNet + SFT", "SFT", 1.0, "SFT"),
    )
)
_SUBJECTIVITY = tuple(
    Target(method, "accuracy_calibrated", than, "calibrated accuracy", f"{n} labels", more=more, rows=500)
    for method, than, more, labels in (
        ("GFlowNet", "few-shot prompting", 0.08, (10, 20, 50)),
        ("GFlowNet", "SFT", 0.0, (10,)),
        ("GFlowNet", "reward maximisation (RLOO)", 0.0, (10,)),
        ("GFlowNet + SFT", "SFT", 0.0, (10, 20, 50)),
    )
    for n in labels
)
_INFILLING = tuple(
    Target(method, figure, than, words)
    for figure, words in (("mean_log_reward", "mean log R"), ("similarity", "similarity"))
    for method, than in (("GFlowNet", "SFT"), ("SFT", "prompting"))
)


SECTIONS = (
    Section(
        "arithmetic",
        "Arithmetic with a calculator",
        "Accuracy by the majority of 3 samples at temperature 0.1, on 200 test problems of each length; 50 training "
        "problems of 3 and 4 operands, so that 5 are out of distribution. All methods have the calculator, and LoRA "
        "of rank 64 in all linear layers; all that are trained have the 50 given rationales, GFlowNet and RLOO among "
        "what they replay, where RLOO imitates those that are better than what it draws: nobody sampled them, so "
        "that no importance weight takes them back. Three of the 50 stood, answer and all, among the examples that "
        "the reference reads before them, as they do no more. GFlowNet + SFT is fine-tuned first and then trained as "
        "a GFlowNet. Rank and layers were tried on 20 of these problems of each length (below); objective, steps and "
        "learning rate were chosen on 25 that are not among these. Beside these accuracies: that on 20 training "
        "rows, which tells learning from generalising; the effective sample size of 64 draws at temperature 1 for 8 "
        "queries; and the share of the queries where R is larger for the given rationale than for all that were "
        "drawn, which is what a sampler misses.",
        {
            "test_3_operands.accuracy": "3 operands",
            "test_4_operands.accuracy": "4 operands",
            "test_5_operands.accuracy": "5 operands",
            "training.accuracy": "training rows",
            "ess": _BY_R,
            "known_above": "reference above all draws",
        },
        "The paper's (its table 4), with 3, 4 and 5 operands: SFT 0.721, 0.196, 0.128; PPO 0.306, 0.137, 0.056; "
        "GFlowNet 0.952, 0.754, 0.407.",
        partial(all_judged, _ARITHMETIC),
    ),
    Section(
        "arithmetic-settings",
        "Arithmetic: what the settings do",
        "Another GFlowNet than that of the section above, of rank 16, with 80 steps, on 20 of the test problems of "
        "each length with 5 samples and, but for the second row, reward temperature 1 throughout; each row differs "
        "from the first in what it says. One seed: accuracies of 60 are known to ± 0.06, of 20 to ± 0.1. log R is "
        "log p(Z, Y|X) in nats, over sampled rationales.",
        {"accuracy": "accuracy", "test_5_operands.accuracy": "5 operands", "mean_log_reward": "mean log R"},
    ),
    Section(
        "subjectivity",
        "Subjectivity with few labels",
        "500 test sentences. GFlowNets take the label with the larger mean p(Y|XZ) over 16 rationales sampled at "
        "temperature 1, each distinct one counted by its probability (Horvitz and Thompson 1952); SFT and few-shot "
        "prompting give the label itself, the latter after 10 labelled sentences, drawn anew for each seed. GFlowNet "
        "+ SFT is the GFlowNet, and then p(Z, Y|X) fine-tuned on its rationales of the training sentences: a step of "
        "expectation maximisation. Accuracy is as the model has it, and calibrated: for every method by prior "
        "matching (Liusie et al. 2023), one constant by which both labels are as probable over the test sentences, "
        "whose own labels it doesn't read. The area under the ROC curve (AUC) is the same for both, is given by one "
        "of the 16 rationales as well, which tells what averaging brings, and on training sentences (20 of them, or "
        "all) tells learning from generalising. Where the label isn't known, rationales can be weighed by p(Z|X)/q "
        "alone: their effective sample size then stands beside that by R/q, with the label. The GFlowNet's settings, "
        "its steps among them, were chosen on 300 sentences that are not among these, with 20 labels and one seed; "
        "there rank 16 did better than the rank 64 of these rows, as the next section tells; most of them were made by "
        "then, and all conditions were to be alike.",
        {
            "accuracy": "accuracy",
            "accuracy_calibrated": "calibrated",
            "auc": "AUC",
            "auc_by_one": "AUC by one rationale",
            "training.auc": "AUC, training",
            "corrected_ess": "effective sample size by p(Z\\|X)/q",
            "ess": _BY_R,
        },
        "The paper's (its table 3), with 10 labels: SFT 0.643, GFlowNet 0.714, GFlowNet + SFT 0.752.",
        partial(all_judged, _SUBJECTIVITY),
        curve="auc",
    ),
    Section(
        "subjectivity-settings",
        "Subjectivity: what makes it generalise",
        "The GFlowNet of the section above with 20 labels, of one seed, on 300 sentences that are not among its 500; "
        "each row differs from the first, of 150 steps, in what it says. Accuracies of 300 are known to ± 0.03, "
        "another seed aside. What AUC has more than AUC by one of the 16 rationales is what averaging over them "
        "brings; what it has less than on the 20 training sentences is what doesn't generalise. log R is log p(Z, "
        "Y|X), p(Y|XZ) calibrated, in nats, less the penalty of 10; after an M step by that step's own model.",
        {
            "accuracy": "accuracy",
            "accuracy_calibrated": "calibrated",
            "auc": "AUC",
            "auc_by_one": "AUC by one rationale",
            "training.auc": "AUC, training",
            "ess": _BY_R,
            "mean_log_reward": "mean log R",
        },
    ),
    Section(
        "continuation",
        "Continuation: likelihood against diversity",
        "log p of the best of 10 samples, in nats, mean over 100 prompts that were not trained on, against 1 − the "
        "mean cosine similarity of their sentence embeddings. Up and to the right is better. Likelihood favours short "
        "texts: the last columns are means over all samples of so many tokens, where there are any. At equal "
        "length other prompts are compared, as decoding ends early only where that is likely. MCMC is there for what "
        "an independent draw costs, by the effective sample size of 4 chains of 120 steps, the first half left out.",
        {
            "max_log_reward": "log p of the best",
            "diversity": "diversity",
            "mean_actions": "mean length in tokens",
            "tokens_per_sample": "tokens read a draw",
            "ess": _BY_R,
            **LENGTHS,
        },
        target=continuation_target,
    ),
    Section(
        "infilling",
        "Infilling",
        "The missing fourth sentence of 12 short stories, trained on 24. log R is log p(Z, Y|X) in nats.",
        _INFILLING_FIGURES,
        target=partial(all_judged, _INFILLING),
    ),
    Section(
        "infilling-passages",
        "Infilling: passages of fiction",
        "The missing fourth sentence of 100 passages, five sentences of one paragraph each, trained on 128 of other "
        "texts; all are of the Brown corpus (Francis and Kučera 1964), whose sentences are further apart than a short "
        "story's. Settings were chosen on 17 passages that are not among these. log R is log p(Z, Y|X) in nats.",
        _INFILLING_FIGURES,
        target=partial(all_judged, _INFILLING),
    ),
    Section(
        "continuation-shape",
        "Length bias and prefix collapse: continuation",
        _SHAPE.format(
            "8 prompts that were not trained on",
            "and of the base model at the same reward temperature, 0.7",
            "Length and log R",
            "10 for each prompt",
        ),
        SHAPE_FIGURES,
        read=partial(shape_read, "subtb, pairs"),
    ),
    Section(
        "arithmetic-shape",
        "Length bias and prefix collapse: arithmetic",
        _SHAPE.format(
            "8 sums of three numbers that were not trained on",
            "and of the base model",
            "Length, log R and accuracy",
            "5 for each sum, at temperature 0.1",
        ),
        {**SHAPE_FIGURES, "accuracy": "accuracy"},
        read=partial(shape_read, "subtb, trajectory"),
    ),
)
