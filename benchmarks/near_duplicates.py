"""Near-duplicate decisions against `rouge_score`, in turns, and the cost of filtering many prompts.

python benchmarks/near_duplicates.py [--accepted 1000] [--queries 20] [--prompts 10000] [--repeats 5]

Both sides decide for the same queries whether one of the same accepted prompts has a ROUGE-L F1 above 0.7; prompts are
made up of Zipf-distributed words, 4 to 40 of them. Prints the median seconds of both, their ratio, whether all
decisions agree, and how long it takes to accept `--prompts` of them one after the other.
"""

import argparse
import random
import statistics
import time

from rouge_score.rouge_scorer import RougeScorer

from hf_lifealign.self_align.near_duplicates import NearDuplicateFilter


def made_up(count: int, seed: int) -> list[str]:
    """Prompts, every tenth of them a rewrite of an earlier one."""
    rng = random.Random(seed)
    words = [f"word{i}" for i in range(3000)]
    weights = [1 / (i + 1) for i in range(3000)]
    found: list[str] = []
    for i in range(count):
        if i % 10 == 9:
            parts = rng.choice(found).split()
            parts[rng.randrange(len(parts))] = rng.choice(words)
            found.append(" ".join(parts))
        else:
            found.append(" ".join(rng.choices(words, weights, k=rng.randint(4, 40))))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accepted", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    texts = made_up(args.accepted + args.queries, 0)
    accepted, queries = texts[: args.accepted], texts[args.accepted :]
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    ours, theirs, agreed = [], [], True
    for _ in range(args.repeats):
        start = time.perf_counter()
        held = NearDuplicateFilter()
        held.extend(accepted)
        found = [held.find(query) is not None for query in queries]
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        exact = [any(scorer.score(a, query)["rougeL"].fmeasure > 0.7 for a in accepted) for query in queries]
        theirs.append(time.perf_counter() - start)
        agreed &= found == exact
    fast, slow = statistics.median(ours), statistics.median(theirs)
    pairs = args.accepted * args.queries
    print(f"{pairs} pairs, median of {args.repeats}: ours {fast:.3f} s, rouge_score {slow:.2f} s, {slow / fast:.0f}x")
    print(f"duplicates {sum(found)} of {len(queries)}, same decisions: {agreed}")
    start, held, dropped = time.perf_counter(), NearDuplicateFilter(), 0
    for text in made_up(args.prompts, 1):
        if held.find(text) is None:
            held.add(text)
        else:
            dropped += 1
    print(f"{args.prompts} prompts one after the other: {time.perf_counter() - start:.1f} s, {dropped} dropped")


if __name__ == "__main__":
    main()
